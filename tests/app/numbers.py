"""Tests play the worker: an experiment with numbers, indexed as the recorder does it."""

from collections.abc import Mapping
from typing import Any

from app.results.tables import ResultValue
from app.search import indexing
from tests.app.conftest import Service

Numbers = Mapping[tuple[str, int], Mapping[str, float | None]]


def record(service: Service, experiment_id: str, numbers: Numbers) -> None:
    """Write final numbers by arm and seed."""
    with service.database.writing() as session:
        session.add_all(
            ResultValue(experiment_id=experiment_id, arm=arm, seed=seed, metric=metric, value=value)
            for (arm, seed), metrics in numbers.items()
            for metric, value in metrics.items()
        )
        session.flush()
        for arm in dict.fromkeys(arm for arm, _ in numbers):
            indexing.refresh(session, experiment_id, arm)


def done(service: Service, spec: dict[str, Any], numbers: Numbers) -> dict[str, Any]:
    """Submit an experiment and let it succeed with these numbers."""
    made = service.submit(spec)
    record(service, made["id"], numbers)
    service.end(made["id"])
    return made


def arm(clean: float, attack: float | None) -> dict[str, float | None]:
    """The two numbers that everybody looks at."""
    return {"clean_accuracy": clean, "attack_success_rate": attack}
