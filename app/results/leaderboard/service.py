"""The leaderboard: attacks against defenses, measured here and published."""

from itertools import product
from urllib.parse import urlencode

from app.core.context import Context
from app.core.validation import members, name_of
from app.results.leaderboard import repository
from app.results.leaderboard.published import SOURCES, published
from app.results.leaderboard.repository import SeedRow
from app.results.leaderboard.schemas import METRICS, BoardName, Cell, Front, Fronts, Leaderboard, Point
from app.results.numbers.schemas import Aggregate
from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec
from app.tables.leaderboard import LeaderboardSetting

MOST_IDS = 20


def attacks() -> list[str]:
    """The names of all attacks, `none` first, in the order of the catalog."""
    return _names("attack")


def defenses() -> list[str]:
    """``clean``, ``undefended``, then the names of all defenses in the order of the catalog."""
    return [CLEAN, UNDEFENDED, *_names("defenses")]


def leaderboard(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> Leaderboard:
    """The leaderboard of a dataset and model; empty if there are no results."""
    cells = _cells(context, dataset, model, poisoning_rate)
    quoted = published(dataset, poisoning_rate)
    with context.database.reading() as session:
        boards = repository.boards(session)
    shown_attacks = {cell.attack for cell in cells} | {cell.attack for cell in quoted}
    shown_defenses = {cell.defense for cell in cells} | {cell.defense for cell in quoted}
    sources = {cell.source for cell in quoted}
    return Leaderboard(
        dataset=dataset,
        model=model,
        poisoning_rate=poisoning_rate,
        attacks=[name for name in attacks() if name in shown_attacks],
        defenses=[name for name in defenses() if name in shown_defenses],
        cells=cells,
        published=quoted,
        sources={key: text for key, text in SOURCES.items() if key in sources},
        boards=[BoardName(dataset=name, model=network) for name, network in boards],
    )


def fronts(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> Fronts:
    """For each attack the defenses as points, and which of them no other defense beats."""
    by_attack: dict[str, list[Cell]] = {}
    for cell in _cells(context, dataset, model, poisoning_rate):
        by_attack.setdefault(cell.attack, []).append(cell)
    return Fronts(
        dataset=dataset,
        model=model,
        poisoning_rate=poisoning_rate,
        fronts=[
            Front(attack=attack, points=points)
            for attack, cells in by_attack.items()
            if (points := _points(cells))
        ],
    )


def _points(cells: list[Cell]) -> list[Point]:
    coordinates = [
        (cell, cell.clean_accuracy.mean, 1 - cell.attack_success_rate.mean)
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
                a >= accuracy and f >= failure and (a, f) != (accuracy, failure) for _, a, f in coordinates
            ),
        )
        for cell, accuracy, failure in coordinates
    ]
    return sorted(points, key=lambda point: (-point.clean_accuracy, -point.attack_failure_rate))


def _cells(context: Context, dataset: str, model: str, poisoning_rate: float | None) -> list[Cell]:
    pairs = list(product(attacks(), defenses()))
    with context.database.reading() as session:
        settings = repository.best_settings(session, dataset, model, pairs, poisoning_rate)
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
        **{metric: Aggregate.of(getattr(row, metric) for row in rows) for metric in METRICS},
        experiments=list(dict.fromkeys(row.experiment_id for row in rows))[:MOST_IDS],
        results=f"/v1/results?{urlencode({'where': f'setting={setting.setting}'})}",
    )


def _names(field: str) -> list[str]:
    names = [name_of(model) for model in members(ExperimentSpec.model_fields[field].annotation)]
    return [name for name in names if name is not None]
