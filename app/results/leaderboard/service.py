"""Attacks against defenses, ours and published."""

from collections.abc import Iterable
from itertools import product
from urllib.parse import urlencode

from app.core.context import Context
from app.core.validation import members, name_of
from app.results.leaderboard import repository
from app.results.leaderboard.published import SOURCES, published
from app.results.leaderboard.repository import SeedRow
from app.results.leaderboard.schemas import (
    BoardName,
    Cell,
    Front,
    Fronts,
    Leaderboard,
    Point,
    PublishedCell,
)
from app.results.numbers.schemas import Aggregate
from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.metrics import summarize
from app.tables.leaderboard import LeaderboardSetting

MOST_IDS = 20


def attacks() -> list[str]:
    """Every attack's name, `none` first, in the catalog's order."""
    return _names("attack")


def defenses() -> list[str]:
    """No defense at all, then every defense's name, in the catalog's order."""
    return [CLEAN, UNDEFENDED, *_names("defenses")]


def leaderboard(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> Leaderboard:
    """The board of a data set and model; empty where there are no results."""
    cells = _cells(context, dataset, model, poisoning_rate)
    quoted = [
        PublishedCell(**{key: value for key, value in cell._asdict().items() if key != "dataset"})
        for cell in published(dataset, poisoning_rate)
    ]
    with context.database.reading() as session:
        found = repository.boards(session)
    every: list[Cell | PublishedCell] = [*cells, *quoted]
    there = {(cell.attack, cell.defense) for cell in every}
    sources = {cell.source for cell in quoted}
    return Leaderboard(
        dataset=dataset,
        model=model,
        poisoning_rate=poisoning_rate,
        attacks=[name for name in attacks() if any(name == attack for attack, _ in there)],
        defenses=[name for name in defenses() if any(name == defense for _, defense in there)],
        cells=cells,
        published=quoted,
        sources={key: text for key, text in SOURCES.items() if key in sources},
        boards=[BoardName(dataset=name, model=network) for name, network in found],
    )


def fronts(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> Fronts:
    """Which defenses are worth considering: those that no other beats in accuracy and safety at once."""
    by_attack: dict[str, list[Cell]] = {}
    for cell in _cells(context, dataset, model, poisoning_rate):
        if cell.clean_accuracy is not None and cell.attack_success_rate is not None:
            by_attack.setdefault(cell.attack, []).append(cell)
    return Fronts(
        dataset=dataset,
        model=model,
        poisoning_rate=poisoning_rate,
        fronts=[Front(attack=attack, points=_points(cells)) for attack, cells in by_attack.items()],
    )


def _points(cells: list[Cell]) -> list[Point]:
    places = [
        (cell.clean_accuracy.mean, 1 - cell.attack_success_rate.mean)
        for cell in cells
        if cell.clean_accuracy is not None and cell.attack_success_rate is not None
    ]
    points = [
        Point(
            defense=cell.defense,
            setting=cell.setting,
            clean_accuracy=accuracy,
            attack_failure_rate=failure,
            seeds=cell.seeds,
            on_front=not any(
                a >= accuracy and f >= failure and (a, f) != (accuracy, failure) for a, f in places
            ),
        )
        for cell, (accuracy, failure) in zip(cells, places, strict=True)
    ]
    return sorted(points, key=lambda point: (-point.clean_accuracy, -point.attack_failure_rate))


def _cells(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> list[Cell]:
    pairs = list(product(attacks(), defenses()))
    with context.database.reading() as session:
        settings = repository.best(session, dataset, model, pairs, poisoning_rate)
        seeds = repository.seeds(session, settings)
    by_pair = {(s.attack, s.defense): _cell(s, rows) for s in settings if (rows := seeds[s.id])}
    return [by_pair[pair] for pair in pairs if pair in by_pair]


def _cell(setting: LeaderboardSetting, rows: list[SeedRow]) -> Cell:
    return Cell(
        attack=setting.attack,
        defense=setting.defense,
        setting=setting.setting,
        poisoning_rate=setting.poisoning_rate,
        seeds=len(rows),
        clean_accuracy=_aggregate(row.clean_accuracy for row in rows),
        attack_success_rate=_aggregate(row.attack_success_rate for row in rows),
        defense_effectiveness=_aggregate(row.defense_effectiveness for row in rows),
        experiments=list(dict.fromkeys(row.experiment_id for row in rows))[:MOST_IDS],
        results=f"/v1/results?{urlencode({'where': f'setting={setting.setting}'})}",
    )


def _aggregate(values: Iterable[float | None]) -> Aggregate | None:
    summary = summarize(values)
    return Aggregate.model_validate(summary) if summary is not None else None


def _names(field: str) -> list[str]:
    found = [name_of(model) for model in members(ExperimentSpec.model_fields[field].annotation)]
    return [name for name in found if name is not None]
