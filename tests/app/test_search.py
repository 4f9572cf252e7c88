"""Results found by any field of the spec and any metric."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from app.core.database import Database, make_engine, utcnow
from app.core.security import LOCAL
from app.operations import schema
from app.results.search import indexing, plans
from app.results.search.grammar import parse
from app.specs.experiment import UNDEFENDED, ExperimentSpec
from app.tables.experiments import Experiment
from app.tables.results import ResultValue
from app.tables.search import ResultRow
from tests.app.conftest import Service
from tests.app.explained import explained
from tests.app.numbers import arm, done, record

ABL = {"name": "abl", "isolation_ratio": 0.02}
RATES = {"badnets": [0.05, 0.1], "sig": [0.1, 0.5], "blend": [0.1]}


@pytest.fixture(scope="module")
def made(service: Service) -> dict[str, dict[str, Any]]:
    """Five experiments with an undefended and an ABL arm; the success rate grows with each."""
    found = {}
    for attack, rates in RATES.items():
        for rate in rates:
            n = len(found)
            spec = {
                "name": f"{attack} at {rate}",
                "attack": {"name": attack, "poisoning_rate": rate},
                "defenses": [ABL | ({"preset": "paper"} if attack == "sig" else {})],
                "training": {"epochs": 10 + n, "augmentation": {"flip": True} if n == 0 else {}},
                "seeds": [0, 1],
                "tags": {"study": "a" if n < 3 else "b", "with.dots": "x,y"},
            }
            numbers = {
                ("undefended", 0): arm(0.90 + n / 100, 1.0),
                ("undefended", 1): arm(0.92 + n / 100, 0.98),
                ("abl", 0): arm(0.90, n / 10),
                ("abl", 1): arm(0.80, n / 10),
            }
            found[spec["name"]] = done(service, spec, numbers)
    return found


def ask(service: Service, *where: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = service.http.get("/v1/results", params={"where": list(where), **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


@pytest.mark.parametrize("few", [plans.FEW, 0], ids=["gathered", "walked"])
@pytest.mark.parametrize(
    ("where", "sort", "expected"),
    [
        (["attack.name=sig"], None, ["sig at 0.5", "sig at 0.1"]),
        (["attack.name=sig"], "name", ["sig at 0.1", "sig at 0.5"]),
        (["attack.poisoning_rate>=0.1", "attack.name!=sig"], "name", ["badnets at 0.1", "blend at 0.1"]),
        (["attack.poisoning_rate < 0.1"], None, ["badnets at 0.05"]),
        (
            ["results.attack_success_rate<=0.2"],
            "-results.attack_success_rate",
            ["sig at 0.1", "badnets at 0.1", "badnets at 0.05"],
        ),
        (["tag.study=b"], "name", ["blend at 0.1", "sig at 0.5"]),
        (["tag.with.dots=x,y", "training.epochs=12"], None, ["sig at 0.1"]),
        (["tag.missing!=null"], None, []),
        (["training.augmentation.flip=true"], None, ["badnets at 0.05"]),
        (["defense.preset=paper"], "-training.epochs", ["sig at 0.5", "sig at 0.1"]),
        (["status=succeeded", "training.epochs>12"], "training.epochs", ["sig at 0.5", "blend at 0.1"]),
        (["status=failed"], None, []),
        (["attack.amplitude!=null"], "attack.poisoning_rate", ["sig at 0.1", "sig at 0.5"]),
        (
            ["attack.amplitude=null", "seeds>=2"],
            "-name",
            ["blend at 0.1", "badnets at 0.1", "badnets at 0.05"],
        ),
        (["created_at<2020-01-01"], None, []),
        (["name=sig at 0.5"], "attack.name", ["sig at 0.5"]),
    ],
)
def test_conditions_and_orders(
    service: Service,
    made: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    where: list[str],
    sort: str | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(plans, "FEW", few)
    order = {"sort": sort} if sort else {}
    assert names(ask(service, "arm=abl", *where, **order)) == expected


@pytest.mark.parametrize("few", [plans.FEW, 0], ids=["gathered", "walked"])
@pytest.mark.parametrize(
    "sort",
    [
        None,
        "arm",
        "-results.clean_accuracy",
        "results.attack_success_rate",
        "attack.poisoning_rate",
        "-attack.name",
        "-training.epochs",
    ],
)
def test_pages_give_every_row_once_and_in_order(
    service: Service, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, few: int, sort: str | None
) -> None:
    monkeypatch.setattr(plans, "FEW", few)
    query = {"sort": sort} if sort else {}
    whole = ask(service, **query, fields="experiment_id,arm")
    assert len(whole) == 10
    link, pages = "/v1/results", []
    parameters: dict[str, Any] | None = {**query, "fields": "experiment_id,arm", "limit": 3}
    while link:
        answer = service.http.get(link, params=parameters)
        page = answer.json()
        pages.append(page["rows"])
        link, parameters = page["next"], None
        assert ("Link" in answer.headers) == bool(link)
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert [row for page in pages for row in page] == whole


def test_a_row_shows_the_mean_with_its_interval_and_the_rating(
    service: Service, made: dict[str, Any]
) -> None:
    fields = "arm,seeds,attack.poisoning_rate,attack.clean_label,training.epochs,tag.study,status,results.*"
    (row,) = ask(service, "name=sig at 0.5", "arm=abl", fields=fields + ",results.clean_accuracy.high")
    assert row["results.clean_accuracy"] == pytest.approx(0.85)
    assert row["results.clean_accuracy.high"] > 1  # two seeds tell little
    assert row["results.attack_success_rate"] == pytest.approx(0.3)
    effect = [(1 - 0.3 - (0.93 - 0.9) + 1) / 2, (0.98 - 0.3 - (0.95 - 0.8) + 1) / 2]
    assert row["results.defense_effectiveness"] == pytest.approx(sum(effect) / 2)
    assert row["results.seconds"] is None
    assert (row["attack.poisoning_rate"], row["training.epochs"], row["seeds"]) == (0.5, 13, 2)
    assert (row["attack.clean_label"], row["tag.study"], row["status"]) == (True, "b", "succeeded")


def test_the_same_rows_in_every_format(service: Service, made: dict[str, Any]) -> None:
    query = {"where": "attack.name=sig", "sort": "arm", "fields": "arm,name,results.clean_accuracy"}
    rows = ask(service, query["where"], sort="arm", fields=query["fields"])
    text = service.http.get("/v1/results", params=query | {"format": "csv"})
    assert text.headers["content-type"].startswith("text/csv")
    assert [row["name"] for row in csv.DictReader(io.StringIO(text.text))] == names(rows)
    accept = {"Accept": "application/vnd.apache.parquet"}
    table = pq.read_table(io.BytesIO(service.http.get("/v1/results", params=query, headers=accept).content))
    assert table.to_pylist() == rows
    markdown = service.http.get("/v1/results", params=query | {"format": "markdown"}).text
    assert markdown.splitlines()[0] == "| arm | name | results.clean_accuracy |"
    assert "| abl | sig at 0.1 | 0.85 |" in markdown
    latex = service.http.get("/v1/results", params=query | {"format": "latex"}).text
    assert r"arm & name & results.clean\_accuracy \\" in latex
    empty = service.http.get("/v1/results", params={"where": "name=nobody", "format": "parquet"}).content
    assert pq.read_table(io.BytesIO(empty)).num_rows == 0


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ({"where": "attack.poisonin_rate>=0.05"}, "where", "did you mean attack.poisoning_rate"),
        ({"where": "asr<=0.05"}, "where", "results.attack_success_rate"),
        ({"where": "attack.name"}, "where", "FIELD OP VALUE"),
        ({"where": "attack.poisoning_rate>=much"}, "where", "must be compared with a number"),
        ({"where": "attack.name>sig"}, "where", "allowed operators: = and !="),
        ({"where": "created_at>yesterday"}, "where", "2026-01-31"),
        ({"where": "seeds<null"}, "where", "null can only"),
        ({"where": "results.clean_accuracy.low>0.5"}, "where", "unknown field"),
        ({"where": ["seeds=1"] * 21}, "where", "at most 20"),
        ({"sort": "tag.study"}, "sort", "allowed: created_at"),
        ({"sort": "atack.name"}, "sort", "attack.name"),
        ({"fields": "arm,acuracy"}, "fields", "unknown field 'acuracy'"),
        ({"format": "xml"}, "format", "allowed"),
        ({"limit": "5000"}, "limit", "1000"),
        ({"were": "seeds=1"}, "were", "did you mean where"),
        ({"attack.name": "sig"}, "attack.name", "unknown parameter"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused_by_name(
    service: Service, query: dict[str, Any], field: str, message: str
) -> None:
    answer = service.http.get("/v1/results", params=query)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


def test_a_cursor_is_good_for_its_own_question_alone(service: Service, made: dict[str, Any]) -> None:
    following = service.http.get("/v1/results", params={"limit": 2, "where": "arm=abl"}).json()["next"]
    assert service.http.get(following.replace("arm%3Dabl", "arm%3Dundefended")).status_code == 400
    assert service.http.get("/v1/results", params={"cursor": "made-up"}).status_code == 400


def test_every_field_that_is_listed_can_be_asked_for(service: Service, made: dict[str, Any]) -> None:
    listed = service.http.get("/v1/results/fields").json()["fields"]
    fields = [field["name"] for field in listed]
    assert {"attack.poisoning_rate", "defense.gamma", "results.psnr", "device", "setting"} <= set(fields)
    rows = ask(service, fields=",".join(fields), limit=1000)
    assert {row["attack.target_class"] for row in rows} == {0}
    for field in listed:
        if field["number"] and not field["name"].endswith((".low", ".high", ".n")):
            value = 1e9 if field["name"] != "seeds" else 99
            assert ask(service, f"{field['name']}>{value}") == []


def test_numbers_that_change_or_vanish_change_the_index(service: Service) -> None:
    spec = {"name": "changing", "attack": {"name": "none"}, "tags": {"study": "changing"}}
    made = service.submit(spec)
    assert ask(service, "tag.study=changing") == []
    record(service, made["id"], {("clean", 0): {"clean_accuracy": 0.5}})
    assert [row["results.clean_accuracy"] for row in ask(service, "tag.study=changing")] == [0.5]
    with service.database.writing() as session:
        session.execute(delete(ResultValue).where(ResultValue.experiment_id == made["id"]))
        indexing.refresh(session, made["id"], "clean")
    assert ask(service, "tag.study=changing") == []
    record(service, made["id"], {("clean", 0): {"clean_accuracy": 0.7}})
    service.end(made["id"])
    assert len(ask(service, "tag.study=changing")) == 1
    assert service.http.delete(made["links"]["self"]).status_code == 204
    assert ask(service, "tag.study=changing") == []


def test_an_owner_finds_the_own_results_alone(service: Service, made: dict[str, Any]) -> None:
    database = service.database.of("nobody")
    with database.reading() as session:
        assert session.scalar(select(ResultRow.id).limit(1)) is None
        assert session.scalar(select(Experiment.id).limit(1)) is None
        for few in (plans.FEW, 0):
            for sort in ("name", "results.clean_accuracy", "attack.name"):
                question = plans_for(sort)
                assert plans.page(session, *question, None, 10) == [], (few, sort)


def plans_for(sort: str) -> Any:
    question = parse(["attack.name=sig"], sort, None)
    return question.where, question.order


@pytest.mark.parametrize(
    ("where", "sort", "index"),
    [
        ([], None, "ix_result_rows_owner_created"),
        (
            ["attack.name!=sig", "results.psnr>=3", "tag.a=b", "status=failed"],
            "name",
            "ix_result_rows_owner_name",
        ),
        (["arm!=abl"], "-results.clean_accuracy", "ix_result_means_value"),
        (["arm!=abl"], "attack.poisoning_rate", "ix_result_rows_owner_attack"),
        (["seeds=1"], "-defense.name", "ix_result_rows_owner_defense"),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["first page", "later page"])
def test_rows_are_walked_by_an_index_and_never_sorted(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    where: list[str],
    sort: str | None,
    index: str,
    later: bool,
) -> None:
    monkeypatch.setattr(plans, "FEW", -1)
    question = parse(where, sort, None)
    after: list[Any] | None = None
    if later:
        first: Any = 0.5 if question.order.field.number else utcnow() if sort is None else "m"
        after = [first, 5] if question.order.field.source != "spec" else [first, 5, 7]
    plan = explained(service, lambda session: plans.page(session, question.where, question.order, after, 50))
    assert any(index in step for step in plan), plan
    assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in plan), plan


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("attack.poisoning_rate>=0.4", "ix_spec_numbers_value"),
        ("attack.name=sig", "ix_spec_texts_value"),
        ("results.clean_accuracy<=0.1", "ix_result_means_value"),
        ("tag.study=a", "ix_experiment_labels_lookup"),
        ("tag.experiment_id=a", "ix_experiment_labels_lookup"),
        ("setting=0123456789abcdef", "ix_result_rows_owner_setting"),
        ("experiment_id=x", "sqlite_autoindex_result_rows_1"),
    ],
)
def test_a_condition_that_fits_few_is_looked_up_by_its_index(
    service: Service, where: str, index: str
) -> None:
    question = parse([where], None, None)
    plan = explained(
        service, lambda session: session.execute(plans.candidates(question.where[0], question.where))
    )
    assert index in plan[0], plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_revision_0005_indexes_existing_results_as_the_application_does(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    schema.upgrade(url, "0004")
    parsed = ExperimentSpec.model_validate({"defenses": [ABL], "reference": True, "seeds": [0, 1]})
    spec = json.dumps(parsed.model_dump(mode="json"))
    engine = make_engine(url)
    with engine.begin() as connection:
        for number in (1, 2):
            connection.exec_driver_sql(
                "INSERT INTO experiments (id, owner_id, name, status, spec, spec_hash, dataset, model, attack,"
                " created_at, queued_at, attempt, attempts_left, progress) VALUES (?, 'local', 'old', 'succeeded', ?,"
                " 'h', 'digits', 'small_cnn', 'badnets', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 1, 3, '{}')",
                (f"e{number}", spec),
            )
            for place, name in enumerate(parsed.arms):
                for seed in range(number):
                    for metric, value in arm(0.75 + place / 10 + seed / 100, 1 / (place + number)).items():
                        values = (f"e{number}", name, seed, metric, value)
                        connection.exec_driver_sql("INSERT INTO result_values VALUES (?, ?, ?, ?, ?)", values)
    engine.dispose()
    schema.upgrade(url)
    database = Database(url)
    with database.of(LOCAL).writing() as session:
        question = parse(["attack.name=badnets", "results.clean_accuracy>=0.84"], None, None)
        assert len(plans.page(session, question.where, question.order, None, 10)) == 4
        filled = contents(session)
        assert len(filled["leaderboard_values"]) == 6
        indexing.forget(session, ["e1", "e2"])
        for experiment_id in ("e1", "e2"):
            indexing.refresh(session, experiment_id, UNDEFENDED)
        assert contents(session) == filled
    database.close()


def contents(session: Session) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of the index, numbers rounded."""
    return {
        table: sorted(
            tuple(round(value, 6) if isinstance(value, float) else value for value in row)
            for row in session.execute(text(f"SELECT * FROM {table}"))
        )
        for table in (
            "result_rows",
            "result_means",
            "leaderboard_settings",
            "leaderboard_values",
            "spec_parts",
        )
    }
