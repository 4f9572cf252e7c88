"""The leaderboard as the columns and rows of a table."""

from app.core.table_formats import Cell, Column, Row, columns
from app.results.leaderboard.schemas import METRICS, Fronts, Leaderboard
from app.results.numbers.schemas import Aggregate
from app.results.rendering import NOTHING, interval_cells
from app.specs.metrics import format_interval

CELLS = columns(
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


def board(leaderboard: Leaderboard, *, readable: bool) -> tuple[list[Column], list[Row]]:
    """One row for each cell, or if ``readable`` one row for each attack and one column for each defense."""
    return _matrix(leaderboard) if readable else (CELLS, _cells(leaderboard))


def points(fronts: Fronts, *, readable: bool) -> tuple[list[Column], list[Row]]:
    """One row for each point; if ``readable``, fractions are in percent and ``on_front`` is yes or empty."""
    rows: list[Row] = []
    for front in fronts.fronts:
        for point in front.points:
            row: dict[str, Cell] = {"attack": front.attack, **point.model_dump()}
            if readable:
                row["clean_accuracy"] = format_interval(point.clean_accuracy, None, None)
                row["attack_failure_rate"] = format_interval(point.attack_failure_rate, None, None)
                row |= {"on_front": "yes" if point.on_front else "", "setting": point.setting[:8]}
            rows.append(row)
    return POINTS, rows


def _cells(leaderboard: Leaderboard) -> list[Row]:
    """Published cells name their source in ``published_by`` and have no seeds."""
    rows: list[Row] = []
    for cell in leaderboard.cells:
        row: dict[str, Cell] = {"dataset": leaderboard.dataset, "model": leaderboard.model}
        row |= {
            key: getattr(cell, key) for key in ("attack", "defense", "poisoning_rate", "seeds", "setting")
        }
        for metric in METRICS:
            row |= interval_cells(metric, getattr(cell, metric))
        rows.append(row)
    for quoted in leaderboard.published:
        fields = quoted.model_dump()
        rows.append({**fields, "dataset": leaderboard.dataset, "published_by": fields.pop("source")})
    return rows


def _matrix(leaderboard: Leaderboard) -> tuple[list[Column], list[Row]]:
    """Cells ``CA / ASR / DER (n)`` in percent; published rows come last."""
    heads = [Column("attack", "attack (CA / ASR / DER in %, n seeds)"), *columns(*leaderboard.defenses)]
    rows: dict[str, dict[str, str]] = {}
    for cell in leaderboard.cells:
        numbers = " / ".join(_text(getattr(cell, metric)) for metric in METRICS)
        rows.setdefault(cell.attack, {})[cell.defense] = f"{numbers} (n={cell.seeds})"
    for quoted in leaderboard.published:
        label = f"{quoted.attack} (published: {quoted.source}, {quoted.model})"
        numbers = " / ".join(_text(getattr(quoted, metric)) for metric in METRICS)
        rows.setdefault(label, {})[quoted.defense] = numbers
    return heads, [{"attack": label, **cells} for label, cells in rows.items()]


def _text(value: Aggregate | float | None) -> str:
    """``97.2``, or ``97.2 ± 0.4`` if there is an interval."""
    if value is None:
        return NOTHING
    if isinstance(value, Aggregate):
        return format_interval(value.mean, value.low, value.high)
    return format_interval(value, None, None)
