"""Tables as CSV, Markdown and LaTeX, with every special character escaped."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import table_formats as export

COLUMNS = [export.Column("name", "run's name"), export.Column("rate"), export.Column("ok")]
ROWS: list[export.Row] = [
    {"name": 'a_b | 50 % & "q", #1', "rate": 0.123456789, "ok": True},
    {"name": "two\nlines", "rate": None, "ok": False},
]


def test_csv_keeps_every_digit_and_quotes_what_it_must() -> None:
    assert export.csv(COLUMNS, ROWS) == (
        'name,rate,ok\n"a_b | 50 % & ""q"", #1",0.123456789,true\n"two\nlines",,false\n'
    )


def test_markdown_sets_numbers_to_the_right_and_keeps_pipes_inside_their_cells() -> None:
    assert export.markdown(COLUMNS, ROWS) == (
        "| run's name | rate | ok |\n"
        "| --- | ---: | --- |\n"
        '| a_b \\| 50 % & "q", #1 | 0.1235 | true |\n'
        "| two lines |  | false |\n"
    )
    assert export.markdown(export.columns("x"), [{"x": "_a_b_ *c* <i> [d](e)"}]).splitlines()[2] == (
        r"| \_a_b\_ \*c\* \<i\> \[d\](e) |"
    )


def test_latex_escapes_what_it_reads_as_commands() -> None:
    assert export.latex(COLUMNS, ROWS) == (
        "\\begin{tabular}{lrl}\n\\toprule\nrun's name & rate & ok \\\\\n\\midrule\n"
        "a\\_b \\textbar{} 50 \\% \\& \\textquotedbl{}q\\textquotedbl{}, \\#1 & 0.1235 & true \\\\\n"
        "two lines &  & false \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    text = export.latex(export.columns("x"), [{"x": r"\a{b}$c~d^e 97.2 ± 0.4"}]).splitlines()[4]
    assert text == r"\textbackslash{}a\{b\}\$c\textasciitilde{}d\textasciicircum{}e 97.2 $\pm$ 0.4 \\"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_csv_has_no_formulas(start: str) -> None:
    text = export.csv(export.columns("x", "n"), [{"x": f"{start}cmd|' /C calc'!A0", "n": -0.5}])
    (_, (cell, number)) = csv.reader(io.StringIO(text, newline=""))
    assert (cell, number) == (f"'{start}cmd|' /C calc'!A0".replace("\r", "\n"), "-0.5")


FORMULAS = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_csv_reads_back_as_it_was(cells: list[str]) -> None:
    text = export.csv(export.columns("id", "x"), [{"id": i, "x": cell} for i, cell in enumerate(cells)])
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    plain = [cell.replace("\r\n", "\n").replace("\r", "\n") for cell in cells]
    assert [row["x"] for row in read] == [f"'{x}" if x.startswith(FORMULAS) else x for x in plain]
