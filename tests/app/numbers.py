"""Tests play the worker: an experiment with numbers, indexed as the recorder does it."""

from collections.abc import Mapping
from typing import Any

from app.compare.thinning import thin
from app.results.tables import MetricPoint, ResultValue
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


def check_thinning(service: Service) -> None:
    """Series of every length up to 60, with gaps between their steps, are thinned by the database as `thin` does it."""
    made = service.submit()
    points = {f"of {n}": [step * step for step in range(n)] for n in range(1, 61)}
    place = {"experiment_id": made["id"], "arm": "undefended", "seed": 0}
    service.add(
        *(
            MetricPoint(**place, name=name, step=s, value=s / 2)
            for name, steps in points.items()
            for s in steps
        )
    )
    for most in (2, 3, 7, 30, 59, 60, 100_000):
        series = service.http.get(made["links"]["metrics"], params={"points": most}).json()["series"]
        assert {one["name"] for one in series} == set(points)
        for one in series:
            kept, near = one["steps"], thin(points[one["name"]], most)
            assert len(kept) == len(near) == min(most, len(points[one["name"]]))
            assert (kept[0], kept[-1]) == (near[0], near[-1])
            places = [
                (points[one["name"]].index(a), points[one["name"]].index(b))
                for a, b in zip(kept, near, strict=True)
            ]
            assert all(abs(a - b) <= 1 for a, b in places)  # a half may be rounded either way
            assert one["values"] == [step / 2 for step in kept]
