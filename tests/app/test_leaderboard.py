"""Attacks against defenses: what a cell shows, what stands beside it, and what is on the front."""

import csv
import io
from typing import Any

import pytest

from app.data.catalog import service as catalog
from app.results.leaderboard.published import published
from app.specs.defenses.repair import Nad
from app.specs.metrics import summarize
from tests.app.conftest import Service
from tests.app.numbers import arm, done

BASE: dict[str, Any] = {
    "dataset": {"name": "digits", "train_size": 500},
    "model": {"name": "wide_resnet_16_1"},
}
BOARD = {"dataset": "digits", "model": "wide_resnet_16_1"}


@pytest.fixture(scope="module")
def made(service: Service) -> list[dict[str, Any]]:
    """BadNets at two rates against ABL; the setting at 0.1 has three seeds from two experiments."""
    defended = {**BASE, "defenses": [{"name": "abl"}, {"name": "nad"}], "reference": True}
    first = {**defended, "attack": {"name": "badnets", "poisoning_rate": 0.1}, "seeds": [0, 1]}
    again = {**first, "name": "other name and seeds", "seeds": [1, 2], "tags": {"run": "2"}}
    # The same fields by way of another preset.
    again["defenses"] = [{"name": "abl"}, {"name": "nad", **Nad().fields(), "preset": "benchmark"}]
    rare = {**defended, "attack": {"name": "badnets", "poisoning_rate": 0.02}, "seeds": [0]}

    def numbers(seeds: list[int], attack: float) -> Any:
        return {
            **{("clean", s): arm(0.97 + s / 100, 0.0) for s in seeds},
            **{("undefended", s): arm(0.96, 1.0) for s in seeds},
            **{("abl", s): arm(0.94, attack) for s in seeds},
            **{("nad", s): arm(0.90, 0.5) for s in seeds},
        }

    return [
        done(service, first, numbers([0, 1], 0.02)),
        done(service, again, numbers([1, 2], 0.04)),
        done(service, rare, numbers([0], 0.5)),
    ]


def board(service: Service, **query: Any) -> dict[str, Any]:
    answer = service.http.get("/v1/leaderboard", params=BOARD | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cells(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell["attack"], cell["defense"]): cell for cell in found["cells"]}


def test_a_cell_is_one_setting_over_its_seeds(service: Service, made: list[dict[str, Any]]) -> None:
    found = board(service)
    assert set(cells(found)) == {
        ("none", "clean"),
        *(("badnets", defense) for defense in ("undefended", "abl", "nad")),
    }
    cell = cells(found)["badnets", "abl"]
    assert (cell["seeds"], cell["poisoning_rate"]) == (3, 0.1)
    # Seed 1 was run twice; the newer experiment counts.
    assert cell["attack_success_rate"] == pytest.approx(summarize([0.02, 0.04, 0.04]))
    assert cell["defense_effectiveness"] == pytest.approx(summarize([0.98, 0.97, 0.97]))
    assert set(cell["experiments"]) == {made[0]["id"], made[1]["id"]}
    rows = service.http.get(cell["results"]).json()["rows"]
    assert {(row["experiment_id"], row["arm"]) for row in rows} == {
        (made[0]["id"], "abl"),
        (made[1]["id"], "abl"),
    }
    assert cells(found)["badnets", "nad"]["seeds"] == 3
    assert cells(found)["badnets", "undefended"]["defense_effectiveness"] is None
    clean = cells(found)["none", "clean"]
    assert (clean["seeds"], clean["poisoning_rate"]) == (3, None)
    assert {"dataset": "digits", "model": "wide_resnet_16_1"} in found["boards"]


def test_a_rate_chooses_another_setting(service: Service, made: list[dict[str, Any]]) -> None:
    cell = cells(board(service, poisoning_rate=0.02))["badnets", "abl"]
    assert cell["attack_success_rate"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert cell["experiments"] == [made[2]["id"]]


def test_the_same_as_tables(service: Service, made: list[dict[str, Any]]) -> None:
    def text(format: str) -> str:
        return service.http.get("/v1/leaderboard", params=BOARD | {"format": format}).text

    rows = list(csv.DictReader(io.StringIO(text("csv"))))
    (abl,) = [row for row in rows if row["defense"] == "abl"]
    assert float(abl["attack_success_rate"]) == pytest.approx(0.1 / 3)
    assert abl["published_by"] == ""
    head, _, *body = text("markdown").splitlines()
    assert head == "| attack (CA / ASR / DER in %, n seeds) | clean | undefended | abl | nad |"
    (badnets,) = [line for line in body if line.startswith("| badnets |")]
    assert badnets.split(" | ")[2] == "96.0 ± 0.0 / 100.0 ± 0.0 / - (n=3)"
    assert badnets.split(" | ")[3] == "94.0 ± 0.0 / 3.3 ± 2.9 / 97.3 ± 1.4 (n=3)"
    assert r"3.3 $\pm$ 2.9" in text("latex")


def test_published_numbers_are_marked_and_name_their_source(service: Service) -> None:
    found = board(service, dataset="cifar10", model="resnet18")
    assert found["cells"] == []
    by_source = {(entry["source"], entry["attack"], entry["defense"]): entry for entry in found["published"]}
    quoted = by_source["abl_paper", "sig", "abl"]
    assert quoted["model"] == "wide_resnet_16_1"
    assert (quoted["clean_accuracy"], quoted["attack_success_rate"]) == (0.8827, 0.0009)
    assert quoted["defense_effectiveness"] == pytest.approx((0.9946 - 0.0009 + 1) / 2)
    assert by_source["benchmark", "badnets", "undefended"]["attack_success_rate"] == pytest.approx(
        0.95, abs=1e-3
    )
    assert set(found["sources"]) == {"abl_paper", "benchmark", "rnp_code"}
    assert board(service, dataset="cifar10", poisoning_rate=0.01)["published"] == []
    text = service.http.get("/v1/leaderboard", params={"dataset": "cifar10", "format": "markdown"}).text
    assert "sig (published: abl_paper, wide_resnet_16_1)" in text


@pytest.mark.parametrize("dataset", ["cifar10", "gtsrb"])
def test_published_numbers_are_fractions(service: Service, dataset: str) -> None:
    found = board(service, dataset=dataset)["published"]
    assert found
    for cell in found:
        assert 0 <= cell["clean_accuracy"] <= 1
        assert 0 <= cell["attack_success_rate"] <= 1


@pytest.mark.parametrize("dataset", ["cifar10", "gtsrb"])
def test_published_cells_name_methods_that_exist_and_have_a_victim(dataset: str) -> None:
    cells = published(dataset, None)
    assert {cell.attack for cell in cells} <= set(catalog.names("attack"))
    assert {cell.defense for cell in cells} <= {"undefended", *catalog.names("defenses")}
    victims = {(cell.attack, cell.source) for cell in cells if cell.defense == "undefended"}
    assert {(cell.attack, cell.source) for cell in cells} == victims


def test_the_front_holds_what_nothing_beats_in_both(service: Service, made: list[dict[str, Any]]) -> None:
    fronts = service.http.get("/v1/leaderboard/pareto", params=BOARD).json()["fronts"]
    by_attack = {front["attack"]: front["points"] for front in fronts}
    points = {point["defense"]: point for point in by_attack["badnets"]}
    assert [point["defense"] for point in by_attack["badnets"]] == ["undefended", "abl", "nad"]
    assert {name for name, point in points.items() if point["on_front"]} == {"undefended", "abl"}
    assert points["abl"]["attack_failure_rate"] == pytest.approx(1 - 0.1 / 3)
    asked = {**BOARD, "format": "markdown"}
    table = service.http.get("/v1/leaderboard/pareto", params=asked).text.splitlines()
    assert (
        table[0] == "| attack | defense | clean_accuracy | attack_failure_rate | on_front | seeds | setting |"
    )
    assert [line for line in table if line.startswith("| badnets | abl | ") and "| 96.7 | yes | 3 |" in line]
    csv = service.http.get("/v1/leaderboard/pareto", params={**BOARD, "format": "csv"}).text
    assert csv.count("\n") == 1 + sum(len(front["points"]) for front in fronts)


def test_a_deleted_experiment_leaves_and_an_equal_one_takes_its_place(
    service: Service, made: list[dict[str, Any]]
) -> None:
    assert service.http.delete(made[1]["links"]["self"]).status_code == 204
    cell = cells(board(service))["badnets", "abl"]
    assert cell["seeds"] == 2
    assert cell["attack_success_rate"]["mean"] == pytest.approx(0.02)
    for one in (made[0], made[2]):
        assert service.http.delete(one["links"]["self"]).status_code == 204
    assert board(service)["cells"] == []


@pytest.mark.parametrize("query", [{"poisoning_rate": 2}, {"data": "digits"}, {"format": "pdf"}])
def test_wrong_queries_are_refused(service: Service, query: dict[str, Any]) -> None:
    answer = service.http.get("/v1/leaderboard", params=query)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in query
