"""The leaderboard as rows of a table."""

from app.core.table_formats import Column, Row, columns
from app.results.leaderboard.schemas import Fronts, Leaderboard
from app.results.numbers.schemas import Aggregate

METRICS = ("clean_accuracy", "attack_success_rate", "defense_effectiveness")
LONG = columns(
    "dataset",
    "model",
    "attack",
    "defense",
    "poisoning_rate",
    "seeds",
    *(f"{metric}{end}" for metric in METRICS for end in ("", ".low", ".high")),
    "setting",
    "published_by",
)
POINTS = columns("attack", "defense", "clean_accuracy", "attack_failure_rate", "on_front", "seeds", "setting")


def long(board: Leaderboard) -> list[Row]:
    """One row a cell; published ones name their source in ``published_by`` and have no seeds."""
    rows: list[Row] = []
    for cell in board.cells:
        row: dict[str, str | int | float | bool | None] = {"dataset": board.dataset, "model": board.model}
        row |= {
            key: getattr(cell, key) for key in ("attack", "defense", "poisoning_rate", "seeds", "setting")
        }
        for metric in METRICS:
            value: Aggregate | None = getattr(cell, metric)
            if value is not None:
                row |= {metric: value.mean, f"{metric}.low": value.low, f"{metric}.high": value.high}
        rows.append(row)
    for quoted in board.published:
        fields = quoted.model_dump()
        rows.append({**fields, "dataset": board.dataset, "published_by": fields.pop("source")})
    return rows


def matrix(board: Leaderboard) -> tuple[list[Column], list[Row]]:
    """For people: a row an attack, a column a defense, cells ``CA / ASR / DER (n)`` in percent; then published rows."""
    heads = [Column("attack", "attack (CA / ASR / DER in %, n seeds)"), *columns(*board.defenses)]
    ours: dict[str, dict[str, str]] = {}
    for cell in board.cells:
        numbers = " / ".join(percent(getattr(cell, metric)) for metric in METRICS)
        ours.setdefault(cell.attack, {})[cell.defense] = f"{numbers} (n={cell.seeds})"
    quoted: dict[str, dict[str, str]] = {}
    for entry in board.published:
        label = f"{entry.attack} (published: {entry.source}, {entry.model})"
        numbers = " / ".join(_plain(getattr(entry, metric)) for metric in METRICS)
        quoted.setdefault(label, {})[entry.defense] = numbers
    return heads, [{"attack": label, **cells} for label, cells in (*ours.items(), *quoted.items())]


def points(fronts: Fronts, *, for_people: bool) -> list[Row]:
    """One row a point; for people in percent, and a mark instead of a truth value."""
    rows: list[Row] = []
    for front in fronts.fronts:
        for point in front.points:
            row: dict[str, str | int | float | bool | None] = {"attack": front.attack, **point.model_dump()}
            if for_people:
                row |= {
                    name: _plain(getattr(point, name)) for name in ("clean_accuracy", "attack_failure_rate")
                }
                row |= {"on_front": "yes" if point.on_front else "", "setting": point.setting[:8]}
            rows.append(row)
    return rows


def percent(value: Aggregate | None) -> str:
    """``97.2`` or, with an interval, ``97.2 ± 0.4``; a dash for nothing."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return _plain(value.mean)
    return f"{_plain(value.mean)} ± {50 * (value.high - value.low):.1f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
