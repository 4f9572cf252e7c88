"""A list of experiments shows what a list needs; the parameter `fields` selects other fields, or all."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.main import create_app
from app.settings import Settings
from app.tables.experiments import Experiment, Idempotency
from tests.app.conftest import QUICK, Service, serve
from tests.app.numbers import arm, done
from tests.app.test_polled import statements

DOCUMENT = create_app(Settings()).openapi()
PROPERTIES = list(DOCUMENT["components"]["schemas"]["ExperimentItem"]["properties"])
DEFAULT = {
    "id",
    "name",
    "status",
    "dataset",
    "model",
    "attack",
    "defenses",
    "tags",
    "created_at",
    "finished_at",
    "progress",
    "summary",
}
FIFTY = 50


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Fifty experiments of a table that have ended."""
    home: Path = tmp_path_factory.mktemp("home")
    with serve(Settings(home=home, data_dir=home)) as running:
        numbers = random.Random(0)
        for number in range(FIFTY):
            spec = {
                "name": f"BadNets against two defenses, variant {number}",
                "dataset": {"name": "digits"},
                "attack": {"name": "badnets", "poisoning_rate": 0.01 + number / 1000},
                "defenses": [{"name": "abl", "arm": "isolated"}, {"name": "nad"}],
                "tags": {"study": "seed-table", "part": "a"},
            }
            arms = ("undefended", "isolated", "nad")
            done(running, spec, {(name, 0): arm(numbers.random(), numbers.random()) for name in arms})
        yield running


def listed(service: Service, **query: Any) -> list[dict[str, Any]]:
    answer = service.http.get("/v1/experiments", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["experiments"]


def test_a_list_is_short_and_says_the_same_as_each_experiments_page(service: Service) -> None:
    whole, default = (
        service.http.get("/v1/experiments", params={"limit": FIFTY, **query})
        for query in ({"fields": "*"}, {})
    )
    assert len(default.content) < 40_000
    assert len(whole.content) > 4 * len(default.content)
    items = default.json()["experiments"]
    assert len(items) == FIFTY
    for item, full in zip(items, whole.json()["experiments"], strict=True):
        assert set(item) == DEFAULT
        assert set(full) == set(PROPERTIES)
        assert item.items() <= full.items()
    assert whole.json()["experiments"][0] == service.get(items[0]["id"])
    newest = items[0]
    assert (newest["dataset"], newest["model"], newest["attack"]) == ("digits", "small_cnn", "badnets")
    assert newest["defenses"] == ["isolated", "nad"]
    assert newest["tags"] == {"study": "seed-table", "part": "a"}
    assert [numbers["arm"] for numbers in newest["summary"]] == ["undefended", "isolated", "nad"]


def test_an_imported_dataset_is_named_with_its_key(service: Service) -> None:
    with service.database.writing() as session:
        stored = session.scalars(select(Experiment).order_by(Experiment.created_at)).first()
        assert stored is not None
        stored.dataset = "imported"
        stored.spec = {**stored.spec, "dataset": {"name": "imported", "key": "flowers"}}
    (item,) = listed(service, limit=1, order="created_at", fields="dataset")
    assert item == {"dataset": "imported/flowers"}
    for named, count in (
        ("imported/flowers", 1),
        ("imported", 1),
        ("imported/trees", 0),
        ("uploaded/flowers", 0),
    ):
        assert len(listed(service, dataset=named)) == count, named


@pytest.mark.parametrize("field", PROPERTIES)
def test_every_documented_field_can_be_selected(service: Service, field: str) -> None:
    (item,) = listed(service, limit=1, fields=field)
    assert list(item) == [field]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(st.sampled_from(PROPERTIES), min_size=1))
def test_any_selection_is_that_part_of_the_whole(service: Service, fields: list[str]) -> None:
    (item,) = listed(service, limit=1, fields=", ".join(fields))
    (whole,) = listed(service, limit=1, fields=f"{fields[0]},*")
    assert item == {name: whole[name] for name in fields}


def test_what_is_not_shown_is_not_queried(service: Service) -> None:
    with statements() as told:
        listed(service, fields="id,status")
    tables = ("result_values", "attempts", "sweep_experiments")
    assert not [statement for statement in told if any(f"FROM {table}" in statement for table in tables)]


@pytest.mark.parametrize("fields", ["stats", "id,stats", "", "id,,status", "spec.attack", "ID"])
def test_an_unknown_field_is_refused_with_those_that_are_allowed(service: Service, fields: str) -> None:
    answer = service.http.get("/v1/experiments", params={"fields": fields})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    unknown = next(name for name in fields.split(",") if name not in PROPERTIES)
    assert (error["field"], error["value"]) == ("fields", unknown)
    assert error["message"] == f"unknown field; allowed: *, {', '.join(PROPERTIES)}"


def test_a_misspelled_parameter_is_refused(service: Service) -> None:
    answer = service.http.get("/v1/experiments", params={"field": "id"})
    assert answer.status_code == 422
    assert "did you mean fields" in answer.json()["errors"][0]["message"]


def test_the_next_page_has_the_same_fields_and_its_cursor_goes_with_any(service: Service) -> None:
    page = service.http.get("/v1/experiments", params={"fields": "id,status", "limit": 20}).json()
    following = service.http.get(page["next"]).json()
    assert {tuple(item) for item in following["experiments"]} == {("id", "status")}
    other = service.http.get(page["next"].replace("fields=id%2Cstatus", "fields=name")).json()
    assert [list(item) for item in other["experiments"]] == [["name"]] * 20


def test_the_documented_example_is_a_list_by_default() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    (example,) = schemas["Page"]["properties"]["experiments"]["examples"][0]
    assert set(example) == DEFAULT
    assert "required" not in schemas["ExperimentItem"]


def test_an_answer_that_an_earlier_version_stored_is_still_repeated(service: Service) -> None:
    made = service.submit(QUICK, **{"Idempotency-Key": "earlier"})
    with service.database.writing() as session:
        stored = session.scalars(select(Idempotency).where(Idempotency.key == "earlier")).one()
        new = ("dataset", "model", "attack", "defenses", "tags")
        stored.response = {name: value for name, value in stored.response.items() if name not in new}
    assert service.submit(QUICK, **{"Idempotency-Key": "earlier"}) == made
