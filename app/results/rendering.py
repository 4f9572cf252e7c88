"""Results as JSON or as a table, in the format that the client asks for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from fastapi import Header, Response
from pydantic import BaseModel

from app.core import table_responses
from app.core.routing import as_json
from app.core.table_formats import Cell, Column, Row
from app.results.numbers.schemas import Aggregate

TABLES = table_responses.document_formats("csv", "markdown", "latex", "parquet")
"""The ``responses`` entry of status 200 for a route that answers with `respond`."""
Accept = Annotated[str | None, Header()]
NOTHING = "-"
"""What a reader sees where there is no value."""


def respond(
    document: BaseModel,
    format: table_responses.Format | None,
    accept: str | None,
    name: str,
    table: Callable[[bool], tuple[Sequence[Column], Sequence[Row]]],
    headers: Mapping[str, str] | None = None,
) -> Response:
    """``document`` as JSON, or its columns and rows as a file called ``name``.

    ``table`` is called with whether people read the format (Markdown, LaTeX) or programs do (CSV, parquet).
    """
    chosen = table_responses.choose_table_format(format, accept)
    if chosen == "json":
        return as_json(document, headers={**(headers or {}), "Vary": "Accept"})
    columns, rows = table(chosen in ("markdown", "latex"))
    return table_responses.respond(chosen, columns, rows, name, headers)


def interval_cells(name: str, value: Aggregate | None) -> dict[str, Cell]:
    """The cells ``name`` (the mean), ``name.low``, ``name.high`` and ``name.n``; none without a value."""
    if value is None:
        return {}
    return {name: value.mean, f"{name}.low": value.low, f"{name}.high": value.high, f"{name}.n": value.n}
