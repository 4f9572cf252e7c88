"""`bdlab results|leaderboard|compare|reproduce|reproduction`."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bdlab.client import Client
from bdlab.commands.common import (
    FAILED,
    FOLLOW_PATIENCE,
    OK,
    AsJson,
    CommandError,
    ExperimentId,
    Url,
    connect,
    out,
    print_document,
    print_json,
    print_result,
)
from bdlab.commands.following import follow, print_id
from bdlab.commands.tables import results_table, text_table
from bdlab.transport import without_none

MAX_ROWS = 1000

Format = Annotated[
    Literal["csv", "markdown", "latex", "parquet"] | None,
    typer.Option("--format", help="csv, markdown, latex or parquet (only with --out)."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file.")]


def results(
    id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One experiment. Default: search all experiments.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Condition such as 'attack.name=sig'; may be repeated, all must hold."),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Field to sort by, ascending; -FIELD: descending.")] = None,
    fields: Annotated[str | None, typer.Option(help="Fields to show, separated by commas.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Maximum number of rows.")] = 50,
    format: Format = None,
    file: Out = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print an experiment's results, or search all results by any field of the spec and any metric."""
    with connect(url) as client:
        if id is not None:
            if where or sort or fields or format or file:
                raise CommandError("give either an ID, or --where, --sort, --fields, --format, --out")
            _print_experiment(client, id, csv, as_json)
        elif csv or format or file:
            query = without_none(where=where, sort=sort, fields=fields, limit=limit)
            _export(client, "/v1/results", "csv" if csv else format, file, query)
        else:
            rows = client.search(*(where or []), sort=sort, fields=fields, limit=limit)
            _print_rows(list(islice(rows, limit)), as_json)


def leaderboard(
    dataset: Annotated[
        str, typer.Option(help="Name of the dataset; imported/KEY for an imported one.")
    ] = "digits",
    model: Annotated[str, typer.Option(help="Name of the model.")] = "small_cnn",
    rate: Annotated[float | None, typer.Option(help="Only settings with this poisoning rate.")] = None,
    format: Format = None,
    file: Out = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print attacks against defenses, by default as Markdown; published numbers are marked."""
    with connect(url) as client:
        if as_json:
            print_json(client.leaderboard(dataset, model, poisoning_rate=rate))
            return
        query = without_none(dataset=dataset, model=model, poisoning_rate=rate)
        _export(client, "/v1/leaderboard", format or "markdown", file, query)


def compare(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Two to ten experiments.")],
    table: Annotated[
        Literal["numbers", "spec"],
        typer.Option(help="Their numbers, or the differences between their specs."),
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
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it until it has ended, then compare.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment again without the stage cache, and print the new experiment's id."""
    with connect(url, patience=FOLLOW_PATIENCE if watch else 1.0) as client:
        experiment = client.reproduce(id)
        print_id(experiment, watch=watch, as_json=as_json)
        if watch:
            code = follow(client, experiment["id"], as_json=as_json)
            raise typer.Exit(code or _print_reproduction(client, experiment["id"], as_json))


def reproduction(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Print how the numbers of a reproduction compare. Exit code 1 unless they agree."""
    with connect(url) as client:
        raise typer.Exit(_print_reproduction(client, id, as_json))


def _print_reproduction(client: Client, id: str, as_json: bool) -> int:
    report = client.reproduction(id)
    if as_json:
        print_json(report)
    else:
        out.print(f"{report['verdict']}: {report['agreeing']} of {len(report['metrics'])} numbers agree")
        if report["tolerance"] is not None:
            out.print(f"tolerance {report['tolerance']['fractions']:g}: {report['tolerance']['reason']}")
        headings = ("arm", "seed", "metric", "original", "again")
        rows = [[m[heading] for heading in headings] for m in report["metrics"] if not m["agrees"]]
        if rows:
            out.print(text_table("", headings, rows))
    return OK if report["verdict"] == "agrees" else FAILED


def _print_experiment(client: Client, id: str, csv: bool, as_json: bool) -> None:
    if csv:
        print_document(client.results_csv(id))
    elif as_json:
        print_json(client.results(id))
    else:
        out.print(results_table(client.results(id), client.experiment(id)["name"]))


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    fields = list(rows[0]) if rows else ["experiment_id"]
    headings = ["id" if field == "experiment_id" else field for field in fields]
    cells = [[_format_cell(row[field]) for field in fields] for row in rows]
    print_result(rows, as_json, text_table("", headings, cells))


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _export(client: Client, path: str, format: str | None, file: Path | None, query: dict[str, Any]) -> None:
    if format == "parquet" and file is None:
        raise CommandError("parquet is a binary format; give --out FILE")
    data = client.table(path, format or "csv", **query)
    if file is None:
        print_document(data.decode())
    else:
        file.write_bytes(data)
