"""A table as CSV, Markdown or LaTeX text, escaped as each format requires."""

import csv as csv_writer
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.specs.printable import printable

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
DIGITS = 4
"""Significant digits of a number in formats for people; CSV keeps all digits."""

_FORMULA = re.compile(r"[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]")
"""How text begins that a spreadsheet evaluates; the last four are the same characters in full width."""
_MARKDOWN = re.compile(r"[\\`*|<>\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_MARKDOWN_START = re.compile(r"(\d*)([#+=.)-])")
"""How a line of text begins that would be a heading, a list or a rule."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
}


@dataclass(frozen=True)
class Column:
    """``key`` is the cell's key in a row and the CSV header; ``heading`` the header in formats for people."""

    key: str
    heading: str = ""

    @property
    def title(self) -> str:
        return self.heading or self.key


def columns(*keys: str) -> list[Column]:
    """Columns whose headings are their keys."""
    return [Column(key) for key in keys]


def csv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """CSV as in RFC 4180, with a header of keys and line feeds. None becomes an empty cell; numbers keep all digits.

    Text that a spreadsheet would evaluate begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv_writer.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(column.key) for column in columns])
    writer.writerows([_csv_cell(row.get(column.key)) for column in columns] for row in rows)
    return text.getvalue()


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table of GitHub's Markdown. Columns of numbers are right-aligned."""
    heads = [_markdown(column.title) for column in columns]
    rules = ["---:" if _numeric(column, rows) else "---" for column in columns]
    body = [[_markdown(shown(row.get(column.key))) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rules, *body))


def latex(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A ``tabular`` with the rules of the booktabs package. Columns of numbers are right-aligned."""
    layout = "".join("r" if _numeric(column, rows) else "l" for column in columns)
    head = " & ".join(_latex(column.title) for column in columns)
    body = (" & ".join(_latex(shown(row.get(column.key))) for column in columns) for row in rows)
    lines = [
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{line} \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def shown(cell: Cell) -> str:
    """A cell for people: empty for None, a number with four significant digits."""
    if isinstance(cell, float):
        return f"{cell:.{DIGITS}g}"
    return "" if cell is None else str(_plain(cell))


def _csv_cell(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return _plain(cell)
    text = cell.replace("\r\n", "\n").replace("\r", "\n")  # which the writer does not quote
    return f"'{text}" if _FORMULA.match(text) else text


def _plain(cell: Cell) -> Cell:
    return str(cell).lower() if isinstance(cell, bool) else cell


def _numeric(column: Column, rows: Sequence[Row]) -> bool:
    cells = [cell for row in rows if (cell := row.get(column.key)) is not None]
    return bool(cells) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)


def markdown_line(text: str) -> str:
    """``text`` as one line of Markdown that is text and nothing else."""
    line = _markdown(text)
    start = _MARKDOWN_START.match(line)
    return f"{start[1]}\\{line[start.start(2) :]}" if start else line


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", printable(" ".join(text.split())))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(" ".join(text.split())))
