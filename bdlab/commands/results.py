"""`bdlab results|leaderboard|compare|reproduce|reproduction`."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bdlab.base_client import Client
from bdlab.commands import tables
from bdlab.commands.common import (
    FAILED,
    OK,
    AsJson,
    CommandError,
    ExperimentId,
    Url,
    connect,
    out,
    print_json,
    without_none,
)
from bdlab.commands.following import follow

PATIENCE = 60.0
MOST_ROWS = 1000

Format = Annotated[
    Literal["csv", "markdown", "latex", "parquet"] | None,
    typer.Option("--format", help="csv, markdown, latex or parquet (the last with --out)."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file.")]


def results(
    id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One experiment; without it all are searched.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Condition such as 'attack.name=sig'; may be repeated, all must hold."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Field to sort by; with - before it the largest first.")
    ] = None,
    fields: Annotated[str | None, typer.Option(help="Fields to show, by commas.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="At most so many rows.")] = 50,
    format: Format = None,
    file: Out = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print an experiment's results, or search those of all: any field of the spec, any metric."""
    with connect(url) as client:
        if id is not None:
            if where or sort or fields or format or file:
                raise CommandError("give either an ID, or --where, --sort, --fields, --format, --out")
            _of_one(client, id, csv, as_json)
        elif csv or format or file:
            query = without_none(where=where, sort=sort, fields=fields, limit=limit)
            _export(client, "/v1/results", "csv" if csv else format, file, query)
        else:
            found = client.search(*(where or []), sort=sort, fields=fields, limit=limit)
            _show(list(islice(found, limit)), as_json)


def leaderboard(
    dataset: Annotated[
        str, typer.Option(help="Name of the data set; imported/KEY for an imported one.")
    ] = "digits",
    model: Annotated[str, typer.Option(help="Name of the model.")] = "small_cnn",
    rate: Annotated[float | None, typer.Option(help="Only settings with this poisoning rate.")] = None,
    format: Format = None,
    file: Out = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print attacks against defenses, as Markdown unless told otherwise; published numbers are marked."""
    with connect(url) as client:
        if as_json:
            print_json(client.leaderboard(dataset, model, poisoning_rate=rate))
            return
        query = without_none(dataset=dataset, model=model, poisoning_rate=rate)
        _export(client, "/v1/leaderboard", format or "markdown", file, query)


def compare(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Two to ten experiments.")],
    table: Annotated[
        Literal["numbers", "spec"], typer.Option(help="Their numbers, or what differs in their specs.")
    ] = "numbers",
    format: Format = None,
    file: Out = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare experiments with the first of them: paired differences over the seeds that both have."""
    with connect(url) as client:
        if as_json:
            print_json(client.compare(ids))
            return
        query = {"ids": ",".join(ids), "table": table}
        _export(client, "/v1/compare", format or "markdown", file, query)


def reproduce(
    id: ExperimentId,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end and compare.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment afresh, without the stage cache, and print the new one's id."""
    with connect(url, patience=PATIENCE if watch else 1.0) as client:
        made = client.reproduce(id)
        if not watch:
            if as_json:
                print_json(made)
            else:
                typer.echo(made["id"])
            return
        if not as_json:
            typer.echo(made["id"])
        code = follow(client, made["id"], as_json=as_json)
        raise typer.Exit(code or _verdict(client, made["id"], as_json))


def reproduction(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Print how the numbers of a reproduction compare. Exit code 1 unless they agree."""
    with connect(url) as client:
        raise typer.Exit(_verdict(client, id, as_json))


def _verdict(client: Client, id: str, as_json: bool) -> int:
    found = client.reproduction(id)
    if as_json:
        print_json(found)
    else:
        out.print(f"{found['verdict']}: {found['agreeing']} of {len(found['metrics'])} numbers agree")
        if found["tolerance"] is not None:
            out.print(f"tolerance {found['tolerance']['fractions']:g}: {found['tolerance']['reason']}")
        off = [metric for metric in found["metrics"] if not metric["agrees"]]
        heads = ("arm", "seed", "metric", "original", "again")
        if off:
            out.print(tables.plain("", heads, [[metric[head] for head in heads] for metric in off]))
    return OK if found["verdict"] == "agrees" else FAILED


def _of_one(client: Client, id: str, csv: bool, as_json: bool) -> None:
    if csv:
        typer.echo(client.results_csv(id), nl=False)
    elif as_json:
        print_json(client.results(id))
    else:
        out.print(tables.results(client.results(id), client.experiment(id)["name"]))


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    heads = list(rows[0]) if rows else ["experiment_id"]
    cells = [[_cell(row[head]) for head in heads] for row in rows]
    out.print(tables.plain("", ["id" if head == "experiment_id" else head for head in heads], cells))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _export(client: Client, path: str, format: str | None, file: Path | None, query: dict[str, Any]) -> None:
    if format == "parquet" and file is None:
        raise CommandError("parquet is not for reading; give --out FILE")
    data = client.table(path, format or "csv", **query)
    if file is None:
        typer.echo(data.decode(), nl=False)
    else:
        file.write_bytes(data)
