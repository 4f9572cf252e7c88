"""`bdlab study`: submit, follow, extend, cancel and retry attacks x defenses, and print the table."""

from typing import Annotated, Any

import typer

from bdlab.base_client import Client
from bdlab.commands.common import AsJson, CommandError, Url, connect, print_json
from bdlab.commands.experiments import PATIENCE, read_spec
from bdlab.commands.many import States, SubmitsFiles, follow, standing

app = typer.Typer(cls=SubmitsFiles, help="Attacks x defenses: `bdlab study FILE` submits them.")

StudyId = Annotated[str, typer.Argument(metavar="ID", help="The study's id.")]
FORMATS = ("markdown", "csv", "latex", "html", "json")


@app.command()
def submit(
    spec: Annotated[
        str, typer.Argument(metavar="FILE", help="File with the study as JSON; - is standard input.")
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it to its end, then print the table.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a study and print its id. Cells whose numbers are there already are not computed again."""
    body = read_spec(spec)
    with connect(url, patience=PATIENCE if watch else 1.0) as client:
        made = client.studies.submit(body)
        if as_json and not watch:
            print_json(made)
        elif not as_json:
            typer.echo(made["id"])
        if watch:
            raise typer.Exit(follow(client, client.studies, made["id"], _print_table, as_json=as_json))


@app.command()
def table(
    id: StudyId,
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "markdown",
    url: Url = None,
) -> None:
    """Print a study's table, as far as it has come."""
    if format not in FORMATS:
        raise CommandError(f"--format {format} is not known; allowed: {', '.join(FORMATS)}")
    with connect(url) as client:
        if format == "json":
            print_json(client.studies.table(id))
        else:
            typer.echo(client.studies.page(id, format), nl=False)


@app.command()
def show(id: StudyId, url: Url = None, as_json: AsJson = False) -> None:
    """Print how a study stands."""
    with connect(url) as client:
        _tell(client.studies.get(id), as_json)


@app.command()
def extend(
    id: StudyId,
    more: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="JSON with more attacks, defenses or seeds; - is standard input."
        ),
    ],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add attacks, defenses or seeds to a study, and queue what is missing."""
    body = read_spec(more)
    with connect(url) as client:
        _tell(client.studies.extend(id, body), as_json)


@app.command()
def cancel(id: StudyId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel every experiment that a study submitted and that has not ended."""
    with connect(url) as client:
        _tell(client.studies.cancel(id), as_json)


@app.command()
def retry(id: StudyId, state: States = None, url: Url = None, as_json: AsJson = False) -> None:
    """Queue the failed experiments of a study again."""
    with connect(url) as client:
        _tell(client.studies.retry(id, state or ["failed"]), as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    cells = ", ".join(f"{count} {state}" for state, count in found["states"].items() if count)
    typer.echo(f"{found['id']} {standing(found)}; cells: {cells}")


def _print_table(client: Client, id: str) -> None:
    typer.echo(client.studies.page(id, "markdown"), nl=False)
