"""Sweeps over HTTP: whole validation, cells, roll-up, cancel, retry, delete."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.database import utcnow
from app.specs.experiment import ExperimentSpec
from app.tables.experiments import Experiment, Outbox, Stage
from app.tables.results import ArmNote, ResultValue
from app.tables.sweeps import Sweep
from tests.app.conftest import Service

GRID: dict[str, Any] = {
    "name": "rates",
    "base": {"training": {"epochs": 2}, "defenses": [{"name": "abl"}], "tags": {"study": "sweeps"}},
    "grid": {"attack": [{"name": "badnets"}, {"name": "blend"}], "attack.poisoning_rate": [0.05, 0.1, 0.2]},
}


def count(service: Service, table: type[Any] = Experiment) -> int:
    with service.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def sweep(service: Service, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    answer = service.http.post("/v1/sweeps", json=body or GRID, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == answer.json()["links"]["self"]
    return answer.json()


def cells(service: Service, made: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = service.http.get(made["links"]["cells"], params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["cells"]


def test_every_cell_is_an_ordinary_experiment(service: Service) -> None:
    before, messages = count(service), count(service, Outbox)
    made = sweep(service)
    assert (made["cells"], made["status"], made["fraction"], made["missing"]) == (6, "queued", 0.0, 0)
    assert made["experiments"] == {"queued": 6, "running": 0, "succeeded": 0, "failed": 0, "canceled": 0}
    assert (count(service), count(service, Outbox)) == (before + 6, messages + 6)
    assert service.http.get(made["links"]["self"]).json() == made
    listed = cells(service, made)
    assert [c["number"] for c in listed] == list(range(6))
    assert listed[4]["coordinates"] == {"attack": {"name": "blend"}, "attack.poisoning_rate": 0.1}
    experiment = service.get(listed[4]["experiment_id"])
    assert experiment["spec"]["attack"]["name"] == "blend"
    assert experiment["spec"]["attack"]["poisoning_rate"] == 0.1
    assert experiment["name"] == 'rates: attack={"name":"blend"}, attack.poisoning_rate=0.1'
    assert experiment["sweep"] == {
        "id": made["id"],
        "kind": "sweep",
        "coordinates": listed[4]["coordinates"],
    }
    assert experiment["spec_hash"] == ExperimentSpec.model_validate(experiment["spec"]).spec_hash
    events = service.http.get(experiment["links"]["events"] + "?after=0").json()["events"]
    assert [(e["type"], e["data"]) for e in events] == [("state", {"status": "queued", "attempt": 0})]
    found = service.http.get(made["links"]["experiments"], params={"limit": 4}).json()
    rest = service.http.get(found["next"]).json()["experiments"]
    assert {e["id"] for e in found["experiments"] + rest} == {c["experiment_id"] for c in listed}
    by_tag = service.http.get("/v1/experiments?tag=study:sweeps&defense=abl&attack=blend").json()
    assert len(by_tag["experiments"]) == 3


def test_a_cells_own_name_stays(service: Service) -> None:
    made = sweep(service, {"overrides": [{"name": "mine", "seeds": 1}, {"seeds": 2}]})
    names = [service.get(c["experiment_id"])["name"] for c in cells(service, made)]
    assert names == ["mine", "sweep: seeds=2"]


BAD: list[tuple[dict[str, Any], list[tuple[str, Any, str]]]] = [
    (
        {"grid": {"attack": [{"name": "badnets"}], "attack.poisoning_rate": [0.1, 1.5, 2]}},
        [
            ("cells[1].attack.poisoning_rate", 1.5, "(cell 1: "),
            ("cells[2].attack.poisoning_rate", 2, "attack.poisoning_rate=2)"),
        ],
    ),
    (  # a fault of the base is told once, not in every cell
        {"base": {"attak": {}}, "grid": {"seeds": [1, 2, 3]}},
        [("base.attak", {}, "unknown field")],
    ),
    (  # what only the data set can tell
        {"grid": {"dataset": [{"name": "digits"}], "dataset.train_size": [200, 5000]}},
        [
            ("cells[1].dataset.train_size", 5000, "1437"),
        ],
    ),
    (
        {"base": {"defenses": [{"name": "abl"}]}, "grid": {"defenses.1.gamma": [0.1]}},
        [("cells[0].defenses.1.gamma", 0.1, "not an index of a list of 1")],
    ),
    ({"grid": {"attack.poisoning_rate": [0.1]}}, [("base.attack.name", None, "required")]),
    (
        {"grid": {"training.epochs": [3, 4], "training": [{"epochs": 9}, {"epochs": 5}]}},
        [("cells[2]", None, "equal to cell 0")],
    ),
    ({"overrides": [{"seeds": 1}, {"seeds": [1], "name": "b"}]}, [("cells[1]", None, "equal to cell 0")]),
    ({"grid": {"seeds": [[1, 1]]}}, [("cells[0]", None, "must be distinct")]),
    ({"base": {}, "grid": {"seeds": [1]}, "nme": "x"}, [("nme", "x", "unknown field; allowed: name, base")]),
    ({"base": {}}, [("body", None, "exactly one of grid and overrides")]),
]


@pytest.mark.parametrize(("body", "faults"), BAD, ids=[b[1][0][0] for b in BAD])
def test_nothing_is_queued_if_any_cell_is_wrong(
    service: Service, body: dict[str, Any], faults: list[tuple[str, Any, str]]
) -> None:
    before = count(service), count(service, Sweep)
    for path in ("/v1/sweeps", "/v1/sweeps:validate"):
        answer = service.http.post(path, json=body)
        assert answer.status_code == 422, answer.text
        errors = answer.json()["errors"]
        assert [e["field"] for e in errors] == [field for field, _, _ in faults]
        for error, (_, value, words) in zip(errors, faults, strict=True):
            assert words in error["message"]
            if value is not None:
                assert error["value"] == value
    assert (count(service), count(service, Sweep)) == before


def test_a_fault_that_only_some_cells_have_says_in_which(service: Service) -> None:
    body = {"grid": {"dataset": [{"name": "digits"}], "dataset.train_size": [1000, 100]}}
    (error,) = service.http.post("/v1/sweeps", json=body).json()["errors"]
    assert (error["field"], error["value"]) == ("base.training.batch_size", 128)
    assert "(cell 1: " in error["message"]


def test_ten_thousand_cells_are_refused_before_any_is_made(service: Service) -> None:
    axis = list(range(100))
    for grid, asked in (
        ({"seeds": axis, "training.epochs": axis}, 10_000),
        ({f"p{i}": axis for i in range(30)}, 100**30),
    ):
        answer = service.http.post("/v1/sweeps", json={"grid": grid})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert (error["field"], error["value"]) == ("grid", f"{asked} cells")
        assert "at most 1000" in error["message"]
    listed = service.http.post("/v1/sweeps", json={"overrides": [{"seeds": i} for i in range(1001)]})
    assert listed.json()["errors"][0]["field"] == "overrides"
    heavy = {
        "base": {"defenses": [{"name": "nad", "arm": f"a{i}"} for i in range(30)]},
        "grid": {"training.epochs": axis, "seeds": [list(range(50))]},
    }
    answer = service.http.post("/v1/sweeps", json=heavy)
    assert "at most 50000" in answer.json()["errors"][0]["message"]


def test_the_same_key_gives_the_first_answer_again(service: Service) -> None:
    before = count(service)
    first = sweep(service, **{"Idempotency-Key": "a sweep"})
    again = service.http.post("/v1/sweeps", json=GRID, headers={"Idempotency-Key": "a sweep"})
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first, "true")
    assert count(service) == before + 6
    for path, body in (("/v1/sweeps", {**GRID, "name": "b"}), ("/v1/experiments", {})):
        other = service.http.post(path, json=body, headers={"Idempotency-Key": "a sweep"})
        assert (other.status_code, "Idempotency-Key" in other.json()["detail"]) == (422, True)


def test_a_dry_run_counts_stages_once_and_knows_what_is_cached(service: Service) -> None:
    before = count(service)
    body = {
        "base": {"reference": True, "defenses": [{"name": "fine_tuning"}]},
        "grid": {"attack": [{"name": "sig"}, {"name": "blend"}], "seeds": [7, 8]},
    }
    found = service.http.post("/v1/sweeps:validate", json=body).json()
    one = service.http.post(
        "/v1/experiments:validate", json={**body["base"], "attack": {"name": "sig"}, "seeds": [7]}
    ).json()
    clean = next(s for s in one["stages"] if s["arm"] == "clean")
    # The clean victim of a seed is the same for both attacks.
    assert found == {"cells": 4, "models": 12, "stages": 4 * len(one["stages"]) - 2, "cached": 0}
    service.add(Stage(key=clean["key"], kind="victim", ready_at=utcnow(), last_used_at=utcnow()))
    assert service.http.post("/v1/sweeps:validate", json=body).json()["cached"] == 1
    assert count(service) == before


def test_the_roll_up_follows_the_experiments(service: Service) -> None:
    made = sweep(service, {"grid": {"seeds": [0, 1, 2, 3]}})
    ids = [c["experiment_id"] for c in cells(service, made)]
    service.end(ids[0])
    service.start(ids[1])
    with service.database.writing() as session:
        session.get_one(Experiment, ids[1]).progress = {"fraction": 0.5}
    service.add(
        ResultValue(experiment_id=ids[0], arm="undefended", seed=0, metric="clean_accuracy", value=0.5)
    )
    found = service.http.get(made["links"]["self"]).json()
    assert (found["status"], found["fraction"]) == ("running", 0.375)
    assert found["experiments"] == {"queued": 2, "running": 1, "succeeded": 1, "failed": 0, "canceled": 0}
    assert [c["status"] for c in cells(service, made)] == ["succeeded", "running", "queued", "queued"]
    assert [c["fraction"] for c in cells(service, made)] == [1.0, 0.5, 0.0, 0.0]
    (done,) = cells(service, made, status="succeeded")
    assert done["summary"] == [{"arm": "undefended", "clean_accuracy": 0.5, "attack_success_rate": None}]
    service.http.delete(f"/v1/experiments/{ids[2]}")
    assert [c["number"] for c in cells(service, made, status="missing")] == [2]
    assert service.http.get(made["links"]["self"]).json()["missing"] == 1
    canceled = service.http.post(made["links"]["cancel"])
    assert (canceled.status_code, canceled.json()["experiments"]["canceled"]) == (202, 1)
    assert service.get(ids[1])["cancel_requested_at"]
    assert service.http.post(made["links"]["cancel"]).json() == canceled.json()


def test_only_what_failed_is_retried(service: Service) -> None:
    made = sweep(service, {"grid": {"seeds": [0, 1, 2, 3]}})
    failed, partly, fine, canceled = (c["experiment_id"] for c in cells(service, made))
    service.end(failed, "failed", "no")
    service.end(partly)
    service.add(ArmNote(experiment_id=partly, arm="undefended", seed=1, kind="error", message="bad"))
    service.add(ArmNote(experiment_id=fine, arm="undefended", seed=2, kind="warning", message="odd"))
    service.end(fine)
    service.http.post(f"/v1/experiments/{canceled}:cancel")
    ended = service.http.get(made["links"]["self"]).json()
    assert (ended["status"], ended["fraction"]) == ("failed", 1.0)
    again = service.http.post(made["links"]["retry"])
    assert again.status_code == 202
    assert again.json()["experiments"] == {
        "queued": 2,
        "running": 0,
        "succeeded": 1,
        "failed": 0,
        "canceled": 1,
    }
    assert [service.get(i)["status"] for i in (failed, partly, fine, canceled)] == [
        "queued",
        "queued",
        "succeeded",
        "canceled",
    ]
    assert service.http.post(made["links"]["retry"]).json() == again.json()
    assert service.http.post(made["links"]["retry"] + "?state=running").status_code == 422
    service.http.post(made["links"]["retry"] + "?state=failed&state=canceled")
    assert service.get(canceled)["status"] == "queued"


def test_deleting_takes_the_experiments_along_once_none_runs(service: Service) -> None:
    made = sweep(service, {"grid": {"seeds": [0, 1]}})
    first, second = (c["experiment_id"] for c in cells(service, made))
    service.start(first)
    refused = service.http.delete(made["links"]["self"])
    assert refused.status_code == 409
    assert f"{made['id']}:cancel" in refused.json()["detail"]
    with service.database.writing() as session:
        session.get_one(Experiment, first).status = "failed"
    assert service.http.delete(made["links"]["self"]).status_code == 204
    paths = [made["links"][name] for name in ("self", "cells")] + [
        f"/v1/experiments/{i}" for i in (first, second)
    ]
    assert [service.http.get(path).status_code for path in paths] == [404] * 4
    for name in ("cancel", "retry"):
        assert service.http.post(made["links"][name]).status_code == 404
    assert service.http.delete(made["links"]["self"]).status_code == 404


def test_pages_of_sweeps_and_of_cells(service: Service) -> None:
    made = [sweep(service, {"name": f"p{i}", "grid": {"seeds": [0, 1, 2]}})["id"] for i in range(3)]
    first = service.http.get("/v1/sweeps?limit=2")
    assert [s["id"] for s in first.json()["sweeps"]] == made[:0:-1]
    assert first.headers["Link"] == f'<{first.json()["next"]}>; rel="next"'
    assert service.http.get(first.json()["next"]).json()["sweeps"][0]["id"] == made[0]
    page = service.http.get(f"/v1/sweeps/{made[0]}/cells?limit=2").json()
    rest = service.http.get(page["next"]).json()
    assert [c["number"] for c in page["cells"] + rest["cells"]] == [0, 1, 2]
    assert rest["next"] is None
    for bad in (first.json()["next"][:-3], page["next"].replace("limit", "status=queued&limit")):
        assert service.http.get(bad).status_code == 400


@pytest.mark.parametrize("kind", ["sweeps", "studies"])
def test_every_example_can_run(service: Service, kind: str) -> None:
    examples = sorted((Path(__file__).parents[2] / "examples" / kind).glob("*.json"))
    assert examples
    for example in examples:
        answer = service.http.post(f"/v1/{kind}:validate", json=json.loads(example.read_text()))
        assert answer.status_code == 200, answer.text


def test_an_unknown_parameter_is_refused(service: Service) -> None:
    answer = service.http.get("/v1/sweeps?limitt=3")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "limitt")
    assert "did you mean limit" in answer.json()["detail"]
