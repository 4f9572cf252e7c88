"""Published numbers, shown beside those that were measured here."""

import csv
from functools import cache
from importlib.resources import files
from typing import Any

from app.results.leaderboard.schemas import PublishedCell
from app.specs.experiment import UNDEFENDED
from app.specs.metrics import defense_effectiveness

SOURCES = {
    "abl_paper": "Li et al. 2021, Anti-Backdoor Learning: Training Clean Models on Poisoned Data, NeurIPS. "
    "CIFAR-10, WRN-16-1; 'Dynamic' is listed as input_aware and 'FC' as poison_frogs. Quoted, not re-measured.",
    "benchmark": "Public leaderboard of BackdoorBench (Wu et al. 2022), PreActResNet18, poisoning rate 0.1: "
    "static/data/results.csv of its site (github.com/backdoorbench/backdoorbench.github.io at b98eab4, June 2025), and "
    "its pages for cells that the file lacks. 'SSBA' is listed as issba. One run a cell; its triggers and schedules "
    "differ from ours in detail. Quoted, not re-measured.",
    "rnp_code": "Li et al. 2023, Reconstructive Neuron Pruning for Backdoor Defense, ICML: the log in the README of "
    "their code (github.com/bboylyg/RNP at 4af9901), at its threshold of 0.2. CIFAR-10, ResNet-18, 500 clean images. "
    "One run. Quoted, not re-measured.",
}
NUMBERS = ("poisoning_rate", "clean_accuracy", "attack_success_rate")


def published(dataset: str, poisoning_rate: float | None) -> list[PublishedCell]:
    """The published cells of a dataset, for one poisoning rate or for all."""
    return [cell for cell in _cells().get(dataset, ()) if poisoning_rate in (None, cell.poisoning_rate)]


@cache
def _cells() -> dict[str, list[PublishedCell]]:
    """All published cells by dataset. The rating is not published; it follows from the numbers of the same source."""
    text = files(__package__).joinpath("published.csv").read_text()
    rows: list[dict[str, Any]] = [
        row | {name: float(row[name]) for name in NUMBERS} for row in csv.DictReader(text.splitlines())
    ]
    undefended = {
        (row["dataset"], row["attack"], row["source"]): row for row in rows if row["defense"] == UNDEFENDED
    }
    cells: dict[str, list[PublishedCell]] = {}
    for row in rows:
        before = undefended.get((row["dataset"], row["attack"], row["source"]), {})
        rating = defense_effectiveness(before, row) if row["defense"] != UNDEFENDED else None
        cells.setdefault(row["dataset"], []).append(PublishedCell(**row, defense_effectiveness=rating))
    return cells
