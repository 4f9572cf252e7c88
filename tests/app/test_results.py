"""Numbers and curves, as JSON and CSV."""

import csv
import io
import math
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.specs.metrics import summarize, t_quantile
from app.tables.results import ArmNote, MetricPoint, ResultValue
from tests.app.conftest import Service
from tests.app.numbers import check_downsampling, student_quantile

SPEC = {"reference": True, "seeds": [0, 1, 2], "defenses": [{"name": "abl"}]}


@pytest.fixture(scope="module")
def experiment(service: Service) -> dict[str, Any]:
    made = service.submit(SPEC)
    values = {
        ("abl", 0): {"clean_accuracy": 0.96, "attack_success_rate": 0.0, "isolation_precision": 1.0},
        ("abl", 1): {"clean_accuracy": 0.95, "attack_success_rate": 0.02, "seconds": 3.5},
        ("abl", 2): {"clean_accuracy": 0.97, "attack_success_rate": 0.01},
        ("clean", 0): {"clean_accuracy": 0.98, "attack_success_rate": None},
    }
    service.add(
        *(
            ResultValue(experiment_id=made["id"], arm=arm, seed=seed, metric=metric, value=value)
            for (arm, seed), metrics in values.items()
            for metric, value in metrics.items()
        ),
        ArmNote(experiment_id=made["id"], arm="abl", seed=1, kind="warning", message="stopped early"),
        ArmNote(experiment_id=made["id"], arm="undefended", seed=2, kind="error", message="epoch 3, batch 7"),
        *(
            MetricPoint(
                experiment_id=made["id"], arm="abl", seed=seed, name=name, step=step, value=step / 100 + seed
            )
            for seed in (0, 1)
            for name in ("train_loss", "clean_accuracy")
            for step in range(1, 101)
        ),
        MetricPoint(experiment_id=made["id"], arm="clean", seed=0, name="train_loss", step=1, value=math.inf),
    )
    return made


def test_results_are_aggregated_over_seeds(service: Service, experiment: dict[str, Any]) -> None:
    found = service.http.get(experiment["links"]["results"]).json()
    assert found["experiment_id"] == experiment["id"]
    clean, undefended, abl = found["arms"]
    assert [a["arm"] for a in found["arms"]] == ["clean", "undefended", "abl"]
    accuracy = abl["aggregate"]["clean_accuracy"]
    assert accuracy["mean"] == pytest.approx(0.96)
    half = student_quantile(2) * 0.01 / math.sqrt(3)
    assert accuracy["low"] == pytest.approx(0.96 - half)
    assert accuracy["high"] == pytest.approx(0.96 + half)
    assert accuracy["n"] == 3
    assert abl["aggregate"]["isolation_precision"] == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert abl["seeds"][1] == {
        "seed": 1,
        "clean_accuracy": 0.95,
        "attack_success_rate": 0.02,
        "seconds": 3.5,
        "warnings": ["stopped early"],
    }
    assert undefended == {
        "arm": "undefended",
        "aggregate": {},
        "seeds": [{"seed": 2, "error": "epoch 3, batch 7"}],
    }
    assert "attack_success_rate" not in clean["aggregate"]
    assert clean["seeds"] == [{"seed": 0, "clean_accuracy": 0.98, "attack_success_rate": None}]


def test_results_as_csv(service: Service, experiment: dict[str, Any]) -> None:
    answer = service.http.get(experiment["links"]["results"], headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(r["arm"], r["seed"]) for r in rows] == [
        ("clean", "0"),
        ("undefended", "2"),
        ("abl", "0"),
        ("abl", "1"),
        ("abl", "2"),
    ]
    assert rows[2]["clean_accuracy"] == "0.96"
    assert rows[0]["attack_success_rate"] == ""
    assert rows[1]["error"] == "epoch 3, batch 7"


def test_results_in_every_format_of_a_table(service: Service, experiment: dict[str, Any]) -> None:
    link, id = experiment["links"]["results"], experiment["id"]

    def ask(name: str, accept: str = "application/json") -> Any:
        answer = service.http.get(link, params={"format": name}, headers={"Accept": accept})
        assert f'filename="{id}.' in answer.headers["content-disposition"]
        return answer

    assert ask("csv").text == service.http.get(link, headers={"Accept": "text/csv"}).text
    markdown = ask("markdown").text
    assert markdown == service.http.get(link, headers={"Accept": "text/markdown"}).text
    assert markdown.startswith("| experiment_id | arm | seed | clean_accuracy | attack_success_rate |")
    assert "robust_accuracy" not in markdown  # no row has it
    assert f"| {id} | abl | 1 | 0.95 | 0.02 |" in markdown
    assert rf"{id} & abl & 1 & 0.95 & 0.02 &" in ask("latex").text
    rows = pq.read_table(io.BytesIO(ask("parquet").content)).to_pylist()
    assert [(row["arm"], row["seed"]) for row in rows][-1] == ("abl", 2)
    assert rows[2]["clean_accuracy"] == 0.96
    assert service.http.get(link, params={"format": "xlsx"}).status_code == 422


def test_the_media_type_follows_the_clients_preference(service: Service, experiment: dict[str, Any]) -> None:
    for accept, expected in {
        "*/*": "application/json",
        "text/csv;q=0.5, application/json": "application/json",
        "text/csv, application/json;q=0.5": "text/csv; charset=utf-8",
        "text/*": "text/csv; charset=utf-8",
    }.items():
        answer = service.http.get(experiment["links"]["results"], headers={"Accept": accept})
        assert answer.headers["content-type"] == expected


def test_curves_are_filtered_and_downsampled(service: Service, experiment: dict[str, Any]) -> None:
    def series(**parameters: Any) -> list[dict[str, Any]]:
        return service.http.get(experiment["links"]["metrics"], params=parameters).json()["series"]

    assert [(s["arm"], s["seed"], s["name"], len(s["steps"])) for s in series()] == [
        ("abl", 0, "clean_accuracy", 100),
        ("abl", 0, "train_loss", 100),
        ("abl", 1, "clean_accuracy", 100),
        ("abl", 1, "train_loss", 100),
        ("clean", 0, "train_loss", 1),
    ]
    [downsampled] = series(arm="abl", seed=1, name="train_loss", points=5)
    assert downsampled["steps"] == [1, 26, 51, 75, 100]
    assert downsampled["values"] == [step / 100 + 1 for step in downsampled["steps"]]
    assert series(arm="clean")[0]["values"] == [None]  # JSON has no infinity
    assert series(name="nothing") == []
    assert service.http.get(experiment["links"]["metrics"], params={"points": 1}).status_code == 422


def test_series_of_any_length_are_downsampled(service: Service) -> None:
    check_downsampling(service)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 25, 49])
def test_the_quantiles_are_students(df: int) -> None:
    assert t_quantile(0.975, df) == pytest.approx(student_quantile(df), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_the_interval_is_students(values: list[float]) -> None:
    found = summarize(values)
    assert found is not None
    half = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    assert found["mean"] == pytest.approx(mean(values), abs=1e-12)
    assert found["high"] is not None
    assert found["mean"] is not None
    assert found["high"] - found["mean"] == pytest.approx(half, abs=1e-9)
