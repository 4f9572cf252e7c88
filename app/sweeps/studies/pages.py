"""A study's table as text: for spreadsheets one line a cell, for people one row an attack."""

from collections.abc import Callable
from html import escape
from typing import Literal

from app.core import table_formats as export
from app.core.routing import preferred_media_type
from app.results.numbers.schemas import Aggregate
from app.sweeps.studies.matrix import METRICS
from app.sweeps.studies.schemas import Numbers, States, Table, TableCell

Format = Literal["json", "csv", "markdown", "latex", "html"]
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "csv": "text/csv",
    "markdown": "text/markdown",
    "latex": "application/x-tex",
    "html": "text/html",
}
ATTACK, AVERAGE = "attack", "average"
NOTHING = "-"


def chosen(format: Format | None, accept: str | None) -> Format:
    """The format asked for by parameter, else by the Accept header, else JSON."""
    if format is not None:
        return format
    best = preferred_media_type(accept, list(MEDIA_TYPES.values()))
    return next(name for name, kind in MEDIA_TYPES.items() if kind == best)


def csv(table: Table) -> str:
    """One line an attack and arm, with every digit."""
    parts = ("mean", "low", "high")
    columns = export.columns(ATTACK, "arm", "seeds", *States.model_fields, "warnings")
    columns += [export.Column(f"{name}_{part}") for name in METRICS for part in parts]
    rows: list[export.Row] = []
    for row in table.rows:
        for cell in row.cells:
            if not cell.experiments and not cell.states.missing:
                continue
            line: dict[str, export.Cell] = {ATTACK: row.attack, "arm": cell.arm, "seeds": len(table.seeds)}
            line |= {**cell.states.model_dump(), "warnings": cell.warnings}
            for name in METRICS:
                found: Aggregate | None = getattr(cell, name)
                line |= {f"{name}_{part}": getattr(found, part, None) for part in parts}
            rows.append(line)
    return export.csv(columns, rows)


def markdown(table: Table) -> str:
    """A caption and a pipe table."""
    return f"{caption(table)}\n\n{export.markdown(_columns(table), _rows(table))}"


def latex(table: Table) -> str:
    """A ``tabular`` for booktabs, with the caption as a comment."""
    return f"% {caption(table)}\n{export.latex(_columns(table), _rows(table))}"


def html(table: Table) -> str:
    """A page with nothing but the table."""
    heads = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in _columns(table))
    body = ""
    for row in _rows(table):
        first, *rest = (escape(str(row[column.key])) for column in _columns(table))
        cells = "".join(f"<td>{text}</td>" for text in rest)
        body += f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    title = escape(table.name or "Study")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n'
        f"<table>\n<caption>{escape(caption(table))}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</body>\n</html>\n"
    )


WRITERS: dict[Format, Callable[[Table], str]] = {
    "json": lambda table: table.model_dump_json(),
    "csv": csv,
    "markdown": markdown,
    "latex": latex,
    "html": html,
}


def caption(table: Table) -> str:
    """What the numbers in a cell are."""
    seeds = ", ".join(map(str, table.seeds))
    over = (
        f"mean and half the 95 % interval over seeds {seeds}" if len(table.seeds) > 1 else f"of seed {seeds}"
    )
    name = f"{' '.join(table.name.split())}: " if table.name else ""
    return f"{name}clean accuracy / attack success rate / defense effectiveness, in percent; {over}."


def cell_text(cell: TableCell, seeds: int) -> str:
    """The numbers, and in brackets what is not as it should be; without numbers, why there are none."""
    done = cell.states.succeeded
    others = [
        f"{count} {state}"
        for state, count in cell.states.model_dump().items()
        if count and state != "succeeded"
    ]
    if not done:
        return ", ".join(others) if len(others) > 1 else "".join(others).lstrip("0123456789 ")
    notes = [f"{done} of {seeds} seeds", *others] if others else []
    if cell.warnings:
        notes.append(f"{cell.warnings} warning{'s' if cell.warnings > 1 else ''}")
    return numbers_text(cell) + (f" ({'; '.join(notes)})" if notes else "")


def numbers_text(numbers: Numbers) -> str:
    """Such as ``97.2 ± 0.4 / 3.1 ± 0.2 / 98.0 ± 0.1``; the last part is left out where it has no meaning."""
    shown = [_percent(numbers.clean_accuracy), _percent(numbers.attack_success_rate)]
    if numbers.defense_effectiveness is not None:
        shown.append(_percent(numbers.defense_effectiveness))
    return " / ".join(shown)


def _percent(value: Aggregate | None) -> str:
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {50 * (value.high - value.low):.1f}"


def _columns(table: Table) -> list[export.Column]:
    return [export.Column(ATTACK), *(export.Column(f"arm {arm}", arm) for arm in table.arms)]


def _rows(table: Table) -> list[export.Row]:
    rows: list[export.Row] = [
        {ATTACK: row.attack, **{f"arm {c.arm}": cell_text(c, len(table.seeds)) for c in row.cells}}
        for row in table.rows
    ]
    if len(table.rows) > 1:
        averages = {f"arm {average.arm}": _average(average) for average in table.averages}
        rows.append({ATTACK: AVERAGE, **averages})
    return rows


def _average(numbers: Numbers) -> str:
    return numbers_text(numbers) if numbers.clean_accuracy is not None else NOTHING
