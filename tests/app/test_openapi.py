"""The API does what its OpenAPI document says, on SQLite and on PostgreSQL, whatever is sent and in whatever order.

schemathesis makes requests from the document, and chains them by what their answers give (an experiment that was
submitted is then canceled, asked for its results, deleted). No answer is a 5xx, and each is one that the document
names, with its headers and its schema.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)

from tests.app.conftest import document
from tests.app.people import people
from tests.servers import Postgres

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    use_after_free,
]
ELSEWHERE = (
    "/v1/previews",  # without a worker these are 503
    "/v1/experiments/{experiment_id}/predict",
    "/readyz",
    "/v1/experiments/{experiment_id}/events",  # a stream that does not end
    "/v1/keys/{key_id}:revoke",  # it would revoke its own
)
EXAMPLES: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


# PostgreSQL is long: the same requests as on SQLite, where all of them take 25 s. test_postgres.py has what differs.
@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document, bound to a running service and to the key of somebody who may do everything."""
    url = ""
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.fresh()
    with people(tmp_path_factory.mktemp("home"), database_url=url) as made:
        open_to_all = deepcopy(document())
        del open_to_all["components"]["securitySchemes"]
        for operation in (o for item in open_to_all["paths"].values() for o in item.values()):
            operation["security"] = []  # else it sends keys that it made up; test_access.py looks at those
        schema = schemathesis.openapi.from_dict(open_to_all)
        schema.config.update(base_url=made.service.url)
        for path in ELSEWHERE:
            schema = schema.exclude(path=path)
        schema.key = {"Authorization": made.of("ann").headers["Authorization"]}
        yield schema


def documented(case: Case) -> Any:
    """The first example of the operation's JSON body, which goes further than a random one."""
    body = case.operation.definition.raw.get("requestBody", {})
    examples = body.get("content", {}).get("application/json", {}).get("examples", {})
    return next((example["value"] for example in examples.values()), None)


def test_requests_in_a_row(api: Any) -> None:
    seen: set[tuple[str, int]] = set()

    class Sequences(api.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Case) -> None:
            if case.method == "POST" and (body := documented(case)) is not None:
                case.body = body  # random ones are sent below

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return {"headers": api.key}

        def validate_response(self, response: Response, case: Case, *_: Any, **kwargs: Any) -> None:
            seen.add((f"{case.method} {case.path}", response.status_code))
            case.validate_response(response, checks=CHECKS)

    # A few at a time: of many Hypothesis expects that the same requests have the same answers, but rows stay.
    for number in range(12):
        seed(number)(Sequences)
        Sequences.run(settings=settings(max_examples=2, stateful_step_count=20, **EXAMPLES))
    reached = {operation for operation, status in seen if status < 300}
    assert not any(status == 401 for _, status in seen)
    assert sum("{" in operation for operation in reached) >= 5, sorted(reached)  # things that were there
    assert len(reached) >= 15, sorted(reached)


def test_requests_of_every_kind(api: Any) -> None:
    for result in api.get_all_operations():
        operation = result.ok()

        @settings(max_examples=2, derandomize=True, **EXAMPLES)
        @given(case=operation.as_strategy())
        def send(case: Case) -> None:
            response = case.call(headers=api.key)
            case.validate_response(response, checks=CHECKS[:-1])

        send()
