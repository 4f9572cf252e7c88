"""Any JSON in any field of any request: a wrong type is a 422, and nothing is an error of the server.

The fields come from the OpenAPI document, so those that are still to come are tried too.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.app.conftest import document
from tests.app.people import People, people
from tests.app.sending import post

Hole = Callable[[Any], Any]
"""From a value to a document that has it in one field."""
SEED = int(os.environ.get("SEED", "0"))
MULTIPART = ("POST /v1/models", "POST /v1/datasets")
UNAVAILABLE = ("/v1/previews",)
"""Without a worker a valid request has the answer 503."""


class Field(NamedTuple):
    """One field of one route's body; ``types`` are the JSON types that the document allows there."""

    route: str
    path: str
    types: frozenset[str]
    hole: Hole

    def __repr__(self) -> str:
        return f"{self.route} {self.path or 'body'}"


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return resolved(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    return schema


def variants(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas without a choice that ``schema`` is a choice of."""
    schema = resolved(schema)
    choices = schema.get("oneOf") or schema.get("anyOf")
    return [variant for choice in choices for variant in variants(choice)] if choices else [schema]


def json_types(schema: dict[str, Any]) -> frozenset[str]:
    """The types that the schema allows; empty if it allows all."""
    names = {variant.get("type", "") for variant in variants(schema)}
    return frozenset() if "" in names else frozenset(names)


def least(schema: dict[str, Any]) -> Any:
    """A small value, valid as far as its type goes."""
    schema = variants(schema)[0]
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: least(schema["properties"][name]) for name in schema.get("required", ())}
    return {"array": [], "integer": 1, "number": 0.5, "boolean": True}.get(schema.get("type", ""), "a")


def holes(schema: dict[str, Any], start: dict[str, Any] | None = None) -> Iterator[tuple[str, Any, Hole]]:
    """Path, schema and hole of every field at any depth, first the whole; ``start`` has other fields of the whole."""
    yield "", schema, lambda value: value
    for variant in variants(schema):
        other = start or {name: least(variant["properties"][name]) for name in variant.get("required", ())}
        for name, field in variant.get("properties", {}).items():
            if "const" in field:
                other = {**other, name: field["const"]}
            for path, part, inner in holes(field):
                yield f".{name}{path}", part, lambda v, n=name, o=other, i=inner: {**o, n: i(v)}
        if variant.get("type") == "array":
            for path, part, inner in holes(variant.get("items", {})):
                yield f"[0]{path}", part, lambda v, i=inner: [i(v)]
        for more in (variant.get("additionalProperties"), *variant.get("patternProperties", {}).values()):
            for path, part, inner in holes(more) if isinstance(more, dict) else ():
                yield f".a{path}", part, lambda v, i=inner: {"a": i(v)}


@cache
def fields() -> list[Field]:
    """Every field of every request."""
    return list(find_fields())


def find_fields() -> Iterator[Field]:
    for route, item in document()["paths"].items():
        for method, operation in item.items():
            contents = operation.get("requestBody", {}).get("content", {})
            if content := contents.get("application/json"):
                schema, examples = content["schema"], content.get("examples", {})
            elif content := contents.get("multipart/form-data"):
                schema, examples = content["schema"]["properties"]["metadata"], {}
            else:
                continue
            start = next((example["value"] for example in examples.values()), None)
            for path, part, hole in holes(schema, start):
                yield Field(f"{method.upper()} {route}", path, json_types(part), hole)
    spec = document()["components"]["schemas"]["ExperimentSpec"]
    for path, part, hole in holes(spec):  # the document has "any JSON" there
        sweep = lambda v, h=hole: {"base": h(v), "grid": {"reference": [False, True]}}  # noqa: E731
        if path != ".reference":
            yield Field("POST /v1/sweeps:validate", f".base{path}", json_types(part), sweep)


VALUES: dict[str, Any] = {
    "null": None,
    "boolean": True,
    "integer": 3,
    "number": 0.25,
    "string": "x",
    "array": [],
    "object": {},
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\0", "\ud800", "=1+1", "x" * 300, "2026-01-01", "🎉", "name", "auto"])
)
ANYTHING = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        running.key("limited")
        yield running


@pytest.fixture(scope="module")
def ann(made: People) -> httpx2.Client:
    return made.of("ann")


def send(client: httpx2.Client, field: Field, value: Any) -> httpx2.Response:
    method, _, route = field.route.partition(" ")
    text = json.dumps(field.hole(value)).replace("Infinity", "1e999")
    path = route.replace("{owner}", "limited")
    if field.route in MULTIPART:
        return post(client, path, b"x", text.encode())
    return client.request(method, path, content=text, headers={"Content-Type": "application/json"})


def check(client: httpx2.Client, field: Field, value: Any) -> httpx2.Response:
    """Whatever the value is: no error of the server, and a problem if it is refused."""
    answer = send(client, field, value)
    unavailable = answer.status_code == 503 and field.route.partition(" ")[2] in UNAVAILABLE
    assert answer.status_code < 500 or unavailable, (field, value, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", (field, value)
        assert "\n" not in answer.json()["detail"], (field, value)
    return answer


def check_type(client: httpx2.Client, field: Field, kind: str) -> None:
    """A value of a type that the document does not allow is a 422."""
    answer = check(client, field, VALUES[kind])
    allowed = field.types | ({"number"} & field.types and {"integer"})
    if not allowed or kind in allowed:
        return
    if kind in ("integer", "number") and allowed & {"boolean", "integer"}:
        return  # 1 may be true, 3.0 may be 3
    assert answer.status_code == 422, (field, kind, answer.text)


def of_every_kind() -> list[tuple[Field, str]]:
    """Every field with every type, in an order by chance."""
    cases = [(field, kind) for field in fields() for kind in VALUES]
    random.Random(SEED).shuffle(cases)
    return cases


def test_the_fields_are_those_of_the_specs() -> None:
    found = {repr(field) for field in fields()}
    assert {
        "POST /v1/experiments .defenses[0].preset",
        "POST /v1/experiments:validate .attack.poisoning_rate",
        "POST /v1/sweeps .grid.a[0]",
        "POST /v1/studies .attacks[0].attack.target_class",
        "PUT /v1/owners/{owner}/limits .running",
        "POST /v1/models .shape.channels",
    } <= found
    assert len(found) > 1000


def test_a_boolean_is_no_number_and_other_types_are_refused(ann: httpx2.Client) -> None:
    cases = of_every_kind()
    numbers = [case for case in cases if case[1] == "boolean" and {"integer", "number"} & case[0].types]
    for field, kind in [*numbers[:100], *cases[:250]]:
        check_type(ann, field, kind)


def test_anything_in_any_field(ann: httpx2.Client) -> None:
    try_anything(ann, 200)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_type_in_every_field(ann: httpx2.Client) -> None:
    for field, kind in of_every_kind():
        check_type(ann, field, kind)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_anything_in_any_field_20_000_times(ann: httpx2.Client) -> None:
    try_anything(ann, 20_000)


def try_anything(client: httpx2.Client, times: int) -> None:
    @seed(SEED)
    @settings(
        max_examples=times,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(field=st.sampled_from(fields()), value=ANYTHING)
    def check_one(field: Field, value: Any) -> None:
        check(client, field, value)

    check_one()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice"),
        ('{"name": "\u00e4"}'.encode("latin-1"), "UTF-8"),
        ('{"name": "\u00e4"}'.encode("utf-16"), "UTF-8"),
        (b'{\0"\0a\0"\0:\0\x31\0}\0', "not valid JSON"),
    ],
)
def test_ambiguous_json_is_refused(ann: httpx2.Client, body: bytes, words: str) -> None:
    for route in sorted({field.route for field in fields()} - set(MULTIPART)):
        method, _, path = route.partition(" ")
        path = path.replace("{owner}", "limited")
        answer = ann.request(method, path, content=body, headers={"Content-Type": "application/json"})
        refused = (answer.status_code, answer.headers["content-type"])
        assert refused == (400, "application/problem+json"), (route, answer.text)
        assert words in answer.json()["detail"], route


def test_ambiguous_metadata_is_refused(ann: httpx2.Client) -> None:
    answer = post(ann, "/v1/models", b"x", b'{"name": "a", "name": "b"}')
    assert answer.status_code == 422
    assert "metadata: ambiguous: an object in it has the key 'name' twice" in answer.json()["detail"]


def test_another_encoding_in_the_header_is_refused(ann: httpx2.Client) -> None:
    headers = {"Content-Type": 'application/json; charset="UTF-16"'}
    answer = ann.post("/v1/experiments:validate", content=b"{}", headers=headers)
    assert (answer.status_code, "JSON must be UTF-8" in answer.json()["detail"]) == (415, True)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert ann.post("/v1/experiments:validate", content=b"{}", headers=headers).status_code == 200
