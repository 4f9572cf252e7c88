"""Numbers that others published, to stand beside ours. They were not measured here."""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from app.specs.metrics import defense_effectiveness

SOURCES = {
    "abl_paper": "Li et al. 2021, Anti-Backdoor Learning: Training Clean Models on Poisoned Data, NeurIPS. "
    "CIFAR-10, WRN-16-1; 'Dynamic' is listed as input_aware and 'FC' as poison_frogs. Quoted, not re-measured.",
    "benchmark": "Public leaderboard of BackdoorBench (Wu et al. 2022), PreActResNet18, poisoning rate 0.1. "
    "One run a cell; its triggers and schedules differ from ours in detail. Quoted, not re-measured.",
}


class Published(NamedTuple):
    """One published cell. Fractions; ``defense_effectiveness`` is derived here from the source's own numbers."""

    dataset: str
    model: str
    attack: str
    defense: str
    poisoning_rate: float
    clean_accuracy: float
    attack_success_rate: float
    defense_effectiveness: float | None
    source: str


def published(dataset: str, poisoning_rate: float | None) -> list[Published]:
    """The published cells of a data set; with a rate, those of that rate."""
    return [
        cell for cell in _all() if cell.dataset == dataset and poisoning_rate in (None, cell.poisoning_rate)
    ]


@cache
def _all() -> list[Published]:
    text = files(__package__).joinpath("published.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    numbers = [_numbers(row) for row in rows]
    before = {
        (row["dataset"], row["attack"], row["source"]): found
        for row, found in zip(rows, numbers, strict=True)
        if row["defense"] == "undefended"
    }
    cells = []
    for row, found in zip(rows, numbers, strict=True):
        undefended = before.get((row["dataset"], row["attack"], row["source"]), {})
        rating = defense_effectiveness(undefended, found) if row["defense"] != "undefended" else None
        cells.append(
            Published(
                row["dataset"],
                row["model"],
                row["attack"],
                row["defense"],
                float(row["poisoning_rate"]),
                found["clean_accuracy"],
                found["attack_success_rate"],
                rating,
                row["source"],
            )
        )
    return cells


def _numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in ("clean_accuracy", "attack_success_rate")}
