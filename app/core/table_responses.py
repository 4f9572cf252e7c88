"""Responses that are tables: which format the client asked for, and the table in it."""

import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from fastapi import Query, Response

from app.core import table_formats as export
from app.core.routing import preferred_media_type

Format = Literal["json", "csv", "markdown", "latex", "parquet"]
F = TypeVar("F", bound=str)
MEDIA_TYPES = {
    "json": "application/json",
    "csv": "text/csv",
    "markdown": "text/markdown",
    "latex": "application/x-tex",
    "html": "text/html",
    "parquet": "application/vnd.apache.parquet",
}
SUFFIXES: dict[Format, str] = {"csv": "csv", "markdown": "md", "latex": "tex", "parquet": "parquet"}
FormatQuery = Annotated[
    Format | None,
    Query(description="Overrides the Accept header; LaTeX is a booktabs `tabular`.", examples=["markdown"]),
]


def choose_table_format(format: Format | None, accept: str | None) -> Format:
    """`choose_format` among the formats that every table has."""
    return choose_format(format, accept, get_args(Format))


def choose_format(format: F | None, accept: str | None, offered: Sequence[F]) -> F:
    """The format named by the query parameter, else the one preferred by the Accept header, else the first offered."""
    if format is not None:
        return format
    media_type = preferred_media_type(accept, [MEDIA_TYPES[name] for name in offered])
    return next(name for name in offered if MEDIA_TYPES[name] == media_type)


def document_formats(*formats: str) -> dict[str, Any]:
    """The ``responses`` entry of status 200 for a route that offers these formats besides JSON."""
    return {"content": {MEDIA_TYPES[name]: {"schema": _schema(name)} for name in formats}}


def respond(
    format: Format,
    columns: Sequence[export.Column],
    rows: Sequence[export.Row],
    name: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """``rows`` in a format other than JSON, as a file called ``name``."""
    content = parquet(columns, rows) if format == "parquet" else _WRITERS[format](columns, rows)
    disposition = f'attachment; filename="{name}.{SUFFIXES[format]}"'
    return Response(
        content,
        media_type=MEDIA_TYPES[format],
        headers={**(headers or {}), "Content-Disposition": disposition, "Vary": "Accept"},
    )


def parquet(columns: Sequence[export.Column], rows: Sequence[export.Row]) -> bytes:
    """The rows as a Parquet file. A column is float64, int64, bool or text, by its cells; an empty one is float64."""
    import pyarrow as pa  # noqa: PLC0415  # slow to import, and rarely needed
    import pyarrow.parquet as pq  # noqa: PLC0415

    data = {}
    for column in columns:
        cells = [row.get(column.key) for row in rows]
        kinds = {type(cell) for cell in cells} - {type(None)}
        if kinds <= {int, float}:
            kind = pa.float64() if float in kinds or not kinds else pa.int64()
        else:
            kind = pa.bool_() if kinds == {bool} else pa.string()
            if kinds != {bool}:
                cells = [None if cell is None else str(cell) for cell in cells]
        data[column.key] = pa.array(cells, kind)
    sink = io.BytesIO()
    pq.write_table(pa.table(data), sink)
    return sink.getvalue()


def _schema(format: str) -> dict[str, str]:
    return {"type": "string", "format": "binary"} if format == "parquet" else {"type": "string"}


_WRITERS = {"csv": export.csv, "markdown": export.markdown, "latex": export.latex}
