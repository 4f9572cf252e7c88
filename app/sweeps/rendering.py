"""A study's table as text: CSV with one line per cell, and formats for people with one row per attack."""

from collections.abc import Callable
from html import escape
from typing import Literal

from app.core import table_formats as export
from app.results.numbers.schemas import Aggregate
from app.specs.metrics import format_interval
from app.specs.printable import printable
from app.sweeps.matrix import METRICS
from app.sweeps.schemas import Numbers, States, Table, TableCell

Format = Literal["json", "csv", "markdown", "latex", "html"]
NO_VALUE = "-"


def csv(table: Table) -> str:
    """One line per attack and arm, with every digit."""
    parts = ("mean", "low", "high")
    columns = export.columns("attack", "arm", "seeds", *States.model_fields, "warnings")
    columns += export.columns(*(f"{metric}_{part}" for metric in METRICS for part in parts))
    rows: list[export.Row] = []
    for row in table.rows:
        for cell in row.cells:
            if not cell.experiments and not cell.states.missing:  # the study has no such cell
                continue
            line: dict[str, export.Cell] = {"attack": row.attack, "arm": cell.arm, "seeds": len(table.seeds)}
            line |= {**cell.states.model_dump(), "warnings": cell.warnings}
            for metric in METRICS:
                value: Aggregate | None = getattr(cell, metric)
                line |= {f"{metric}_{part}": getattr(value, part, None) for part in parts}
            rows.append(line)
    return export.csv(columns, rows)


def markdown(table: Table) -> str:
    """A caption and a pipe table."""
    return f"{export.markdown_line(_caption(table))}\n\n{export.markdown(*_for_people(table))}"


def latex(table: Table) -> str:
    """A ``tabular`` for booktabs, with the caption as a comment."""
    return f"% {_caption(table)}\n{export.latex(*_for_people(table))}"


def html(table: Table) -> str:
    """A page with only the table."""
    columns, rows = _for_people(table)
    heads = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    body = ""
    for row in rows:
        attack, *texts = (escape(str(row[column.key])) for column in columns)
        body += f'<tr><th scope="row">{attack}</th>{"".join(f"<td>{text}</td>" for text in texts)}</tr>\n'
    title = escape(printable(table.name) or "Study")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n'
        f"<table>\n<caption>{escape(_caption(table))}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</body>\n</html>\n"
    )


RENDERERS: dict[Format, Callable[[Table], str]] = {
    "json": lambda table: table.model_dump_json(),
    "csv": csv,
    "markdown": markdown,
    "latex": latex,
    "html": html,
}


def _caption(table: Table) -> str:
    seeds = ", ".join(map(str, table.seeds))
    over = (
        f"mean and half the 95 % interval over seeds {seeds}" if len(table.seeds) > 1 else f"of seed {seeds}"
    )
    name = f"{printable(' '.join(table.name.split()))}: " if table.name else ""
    return f"{name}clean accuracy / attack success rate / defense effectiveness, in percent; {over}."


def _for_people(table: Table) -> tuple[list[export.Column], list[export.Row]]:
    """One column per arm, one row per attack, and rows for their average and the worst of them if there are several."""
    columns = [export.Column("attack"), *(export.Column(f"arm {arm}", arm) for arm in table.arms)]
    rows: list[export.Row] = [
        {"attack": row.attack, **{f"arm {c.arm}": _cell(c, len(table.seeds)) for c in row.cells}}
        for row in table.rows
    ]
    if len(table.rows) > 1:
        for name, summaries in (("average", table.averages), ("worst", table.worst)):
            rows.append({"attack": name, **{f"arm {of_arm.arm}": _summary(of_arm) for of_arm in summaries}})
    return columns, rows


def _cell(cell: TableCell, seeds: int) -> str:
    """The numbers, with warnings and unfinished seeds in brackets; without numbers, the states of the seeds."""
    done = cell.states.succeeded
    others = {
        state: count for state, count in cell.states.model_dump().items() if state != "succeeded" and count
    }
    notes = [f"{count} {state}" for state, count in others.items()]
    if not done:
        return ", ".join(notes) if len(others) > 1 else "".join(others)
    if others:
        notes.insert(0, f"{done} of {seeds} seeds")
    if cell.warnings:
        notes.append(f"{cell.warnings} warning{'s' if cell.warnings > 1 else ''}")
    return _numbers(cell) + (f" ({'; '.join(notes)})" if notes else "")


def _summary(numbers: Numbers) -> str:
    return _numbers(numbers) if numbers.clean_accuracy is not None else NO_VALUE


def _numbers(numbers: Numbers) -> str:
    """Such as ``97.2 ± 0.4 / 3.1 ± 0.2 / 98.0 ± 0.1``; arms without a defense have no effectiveness."""
    values = [numbers.clean_accuracy, numbers.attack_success_rate]
    if numbers.defense_effectiveness is not None:
        values.append(numbers.defense_effectiveness)
    return " / ".join(format_interval(v.mean, v.low, v.high) if v is not None else NO_VALUE for v in values)
