"""The one way from a spec to its stages, and what of it is stored."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.core.context import Context
from app.core.errors import ConflictError
from app.experiments import service as experiments
from app.experiments.planning import plan_experiment, runnable_spec
from app.specs.experiment import ExperimentSpec
from app.tables.experiments import Experiment
from tests.app.conftest import Service

DEFENSES: list[dict[str, Any]] = [
    {"name": "abl"},
    {"name": "nad"},
    {"name": "abl", "arm": "second", "gamma": 0.1},
]


@pytest.fixture
def context(service: Service) -> Iterator[Context]:
    opened = Context.open(service.settings)
    yield opened
    opened.close()


def spec(**fields: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {"defenses": DEFENSES, "seeds": [0, 1, 2], "reference": True} | fields
    )


@pytest.mark.parametrize("attack", ["badnets", "input_aware", "none"])
def test_a_part_of_a_plan_is_the_plan_of_the_part(context: Context, attack: str) -> None:
    whole = plan_experiment(context, spec(attack={"name": attack}))
    part = spec(attack={"name": attack}, seeds=[1], defenses=DEFENSES[1:], reference=False)
    assert whole.restrict(part) == plan_experiment(context, part)


def test_the_planned_stages_are_stored_and_not_planned_again(
    service: Service, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = spec(seeds=[3]).model_dump(mode="json")
    validated = service.http.post("/v1/experiments:validate", json=document).json()
    made = service.submit(document)
    monkeypatch.setattr("app.experiments.planning.plan", lambda *_: pytest.fail("planned again"))
    stages = experiments.experiment_stages(context, made["id"])
    assert [stage.model_dump() for stage in stages] == validated["stages"]


def test_stages_that_were_not_stored_are_planned_if_they_can_be(service: Service, context: Context) -> None:
    made = service.submit()
    stages = experiments.experiment_stages(context, made["id"])
    with service.database.writing() as session:
        session.get_one(Experiment, made["id"]).stages = None
    assert experiments.experiment_stages(context, made["id"]) == stages
    with service.database.writing() as session:
        row = session.get_one(Experiment, made["id"])
        row.spec = row.spec | {"dataset": {"name": "imported", "key": "elsewhere"}}
    assert experiments.experiment_stages(context, made["id"]) == []


def test_a_stored_spec_that_a_plug_in_no_longer_accepts_cannot_run(service: Service) -> None:
    made = service.submit()
    with service.database.writing() as session:
        row = session.get_one(Experiment, made["id"])
        row.spec = row.spec | {"attack": row.spec["attack"] | {"size": -1}}
        with pytest.raises(ConflictError, match=r"its spec is no longer valid: attack\.badnets\.size: "):
            runnable_spec(row)
    assert service.get(made["id"])["spec"]["attack"]["size"] == -1
