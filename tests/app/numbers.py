"""Tests play the worker: an experiment with numbers, indexed as the recorder does it."""

import math
from collections.abc import Mapping
from typing import Any

from app.results.search import indexing
from app.tables.results import MetricPoint, ResultValue
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


def check_downsampling(service: Service) -> None:
    """Series of every length up to 60, with gaps between their steps, lose points evenly and none at the ends."""
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
            steps = points[one["name"]]
            places = [steps.index(step) for step in one["steps"]]
            assert len(places) == min(most, len(steps))
            even = [i * (len(steps) - 1) / max(1, len(places) - 1) for i in range(len(places))]
            assert all(abs(place - near) <= 0.5 for place, near in zip(places, even, strict=True))
            assert one["values"] == [step / 2 for step in one["steps"]]


def check_compared_curves(service: Service) -> None:
    """Compared curves leave out points that are no numbers, before they are downsampled."""
    one, other = service.submit()["id"], service.submit()["id"]
    values = [math.inf, 1.0, 2.0, -math.inf, 3.0, 4.0, 5.0]
    service.add(
        *(
            MetricPoint(
                experiment_id=one, arm="undefended", seed=0, name="train_loss", step=step, value=value
            )
            for step, value in enumerate(values)
        )
    )
    asked: dict[str, str | int] = {"ids": f"{one},{other}", "curve": "train_loss", "points": 3}
    [curve] = service.http.get("/v1/compare", params=asked).json()["curves"]
    assert (curve["steps"], curve["values"]) == ([1, 4, 6], [1.0, 3.0, 5.0])


def student_quantile(df: int) -> float:
    """The 0.975 quantile of Student's t distribution, by SciPy."""
    from scipy import stats  # noqa: PLC0415  # takes seconds, in each process that collects the tests

    return float(stats.t.ppf(0.975, df))
