"""Experiments side by side."""

import csv
import io
import math
from statistics import stdev
from typing import Any

import pytest

from app.tables.results import MetricPoint
from tests.app.conftest import Service
from tests.app.numbers import arm, check_compared_curves, done, student_quantile

FIRST = {"name": "one", "defenses": [{"name": "abl", "isolation_ratio": 0.01}], "seeds": [0, 1, 2]}
SECOND = {
    "name": "two",
    "attack": {"name": "sig"},
    "defenses": [{"name": "nad", "arm": "other"}, {"name": "abl", "isolation_ratio": 0.05}],
    "seeds": [1, 2, 3],
    "tags": {"a": "b"},
}


@pytest.fixture(scope="module")
def ids(service: Service) -> list[str]:
    def numbers(seeds: list[int], clean: list[float]) -> dict[tuple[str, int], Any]:
        return {("abl", s): arm(c, None) | {"clean_loss": c} for s, c in zip(seeds, clean, strict=True)}

    first = done(service, FIRST, numbers([0, 1, 2], [0.5, 0.80, 0.90]))
    second = done(service, SECOND, {**numbers([1, 2, 3], [0.82, 0.93, 0.1]), ("other", 1): arm(0.7, 0.2)})
    service.add(
        *(
            MetricPoint(
                experiment_id=made["id"], arm="abl", seed=seed, name=name, step=step, value=step + seed
            )
            for made in (first, second)
            for seed in (1, 2)
            for name in ("clean_accuracy", "train_loss")
            for step in range(1, 11)
        ),
        MetricPoint(experiment_id=first["id"], arm="attack", seed=1, name="train_loss", step=1, value=1),
    )
    return [first["id"], second["id"]]


def get(service: Service, ids: list[str], **query: Any) -> Any:
    return service.http.get("/v1/compare", params={"ids": ",".join(ids), **query})


def test_differences_of_the_specs_are_marked(service: Service, ids: list[str]) -> None:
    fields = {row["field"]: row for row in get(service, ids).json()["spec"]}
    assert fields["defenses.abl.isolation_ratio"] == {
        "field": "defenses.abl.isolation_ratio",
        "values": [0.01, 0.05],
        "same": False,
    }
    assert fields["attack.name"]["values"] == ["badnets", "sig"]
    assert fields["defenses.other.name"]["values"] == [None, "nad"]
    assert fields["training.epochs"]["same"]
    assert not {"name", "tags.a"} & set(fields)
    marks = [row["same"] for row in fields.values()]
    assert marks == sorted(marks)


def test_a_difference_pairs_the_seeds_that_both_have(service: Service, ids: list[str]) -> None:
    arms = {row["arm"]: row["metrics"] for row in get(service, ids).json()["arms"]}
    assert list(arms) == ["abl", "other"]
    (accuracy,) = [row for row in arms["abl"] if row["metric"] == "clean_accuracy"]
    assert [value["n"] for value in accuracy["values"]] == [3, 3]
    none, difference = accuracy["differences"]
    assert none is None
    half = student_quantile(1) * stdev([0.02, 0.03]) / math.sqrt(2)
    assert difference == {
        "mean": pytest.approx(0.025),
        "low": pytest.approx(0.025 - half),
        "high": pytest.approx(0.025 + half),
        "n": 2,
    }
    assert [row["metric"] for row in arms["abl"]] == ["clean_accuracy", "clean_loss"]
    (other,) = [row for row in arms["other"] if row["metric"] == "clean_accuracy"]
    assert (other["values"][0], other["differences"]) == (None, [None, None])


def test_curves_leave_out_what_is_no_number(service: Service) -> None:
    check_compared_curves(service)


def test_curves_are_means_over_seeds_and_downsampled(service: Service, ids: list[str]) -> None:
    curves = get(service, ids, points=4).json()["curves"]
    assert [(c["experiment_id"], c["arm"], c["name"]) for c in curves] == [
        (i, "abl", "clean_accuracy") for i in sorted(ids)
    ]
    assert curves[0]["steps"] == [1, 4, 7, 10]
    assert curves[0]["values"] == [step + 1.5 for step in curves[0]["steps"]]
    losses = get(service, ids, curve="train_loss").json()["curves"]
    assert {(c["arm"], c["name"]) for c in losses} == {("abl", "train_loss")}


def test_the_same_as_tables(service: Service, ids: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(get(service, ids, format="csv").text)))
    (accuracy,) = [row for row in rows if (row["arm"], row["metric"]) == ("abl", "clean_accuracy")]
    assert float(accuracy[f"{ids[1]}.difference"]) == pytest.approx(0.025)
    assert accuracy[f"{ids[1]}.difference.n"] == "2"
    assert f"{ids[0]}.difference" not in accuracy
    head, _, *body = get(service, ids, format="markdown").text.splitlines()
    assert head == "| arm | metric | one | two | difference to the first (95 % interval) |"
    assert any("| +2.5 % \\[" in line for line in body)
    assert any(line.startswith("| abl | clean_loss | 0.7333 \\[") for line in body)
    table = get(service, ids, format="latex", table="spec").text
    assert r"defenses.abl.isolation\_ratio & false & 0.01 & 0.05 \\" in table
    assert r"seeds & false & [0,1,2] & [1,2,3] \\" in table


def test_what_cannot_be_compared_is_refused(service: Service, ids: list[str]) -> None:
    for wrong in ([], ids[:1], [ids[0], ids[0]], [str(i) for i in range(11)]):
        answer = get(service, wrong)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "ids"
        assert "2 to 10" in answer.json()["errors"][0]["message"]
    missing = get(service, [ids[0], "nothing"])
    assert missing.status_code == 404
    assert "nothing" in missing.json()["detail"]
    assert get(service, ids, tables="spec").status_code == 422
