"""`bdlab sweep` and `bdlab study`: submit, follow, cancel and retry many experiments as one request."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bdlab.batches import Batches
from bdlab.client import Client
from bdlab.commands.common import (
    FAILED,
    FOLLOW_PATIENCE,
    OK,
    AsJson,
    CommandError,
    Url,
    connect,
    err,
    out,
    print_document,
    print_json,
    print_result,
    print_text,
)
from bdlab.commands.experiments import read_spec
from bdlab.commands.following import print_id
from bdlab.commands.tables import text_table

FORMATS = ("markdown", "csv", "latex", "html", "json")
Id = Annotated[str, typer.Argument(metavar="ID", help="The id.")]
File = Annotated[str, typer.Argument(metavar="FILE", help="File with JSON; - is standard input.")]


class SubmitGroup(TyperGroup):
    """A group in which `bdlab sweep FILE` is short for `bdlab sweep submit FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["submit", *args]
        return super().parse_args(ctx, args)


sweeps = typer.Typer(cls=SubmitGroup, help="A base spec and a grid: `bdlab sweep FILE` submits it.")
studies = typer.Typer(cls=SubmitGroup, help="Attacks x defenses: `bdlab study FILE` submits them.")


class _StatusLine:
    """Prints the status of a batch on standard error whenever it changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, batch: dict[str, Any]) -> None:
        line = _describe_status(batch)
        if line != self._last:
            err.print(line)
        self._last = line


def _describe_status(batch: dict[str, Any]) -> str:
    """Such as `running, 42 %: 1 running, 3 succeeded`."""
    counts = _describe_counts(batch["experiments"])
    return f"{batch['status']}, {100 * batch['fraction']:.0f} %" + (f": {counts}" if counts else "")


def _describe_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _print_batch(batch: dict[str, Any], as_json: bool) -> None:
    cells = f"; cells: {_describe_counts(batch['states'])}" if "states" in batch else ""  # of studies alone
    print_result(batch, as_json, f"{batch['id']} {_describe_status(batch)}{cells}")


def _print_table(client: Client, id: str) -> None:
    print_document(client.studies.page(id, "markdown"))


def _print_cells(client: Client, id: str) -> None:
    """One row per cell: clean accuracy and attack success rate of every finished arm, in percent."""
    from app.specs.sweep import format_coordinates  # noqa: PLC0415  # pydantic models are slow to import

    rows = [
        (
            cell["number"],
            format_coordinates(cell["coordinates"]),
            cell["status"],
            cell["experiment_id"] or "",
            "; ".join(_describe_arm(arm) for arm in cell["summary"]),
        )
        for cell in client.sweeps.cells(id)
    ]
    headings = ("cell", "coordinates", "status", "id", "clean accuracy / attack success")
    out.print(text_table("", headings, rows))


def _describe_arm(arm: dict[str, Any]) -> str:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    return f"{arm['arm']} {percent(arm['clean_accuracy'])} / {percent(arm['attack_success_rate'])}"


def _add_shared_commands(
    app: typer.Typer,
    kind: str,
    batches_of: Callable[[Client], Batches],
    print_numbers: Callable[[Client, str], None],
) -> None:
    """Add `submit`, `cancel` and `retry` to the group of a ``kind``."""

    @app.command(help=f"Submit a {kind} and print its id. Results that exist already are not computed again.")
    def submit(
        spec: File,
        watch: Annotated[
            bool, typer.Option("--watch", help="Follow it until it has ended, then print the numbers.")
        ] = False,
        url: Url = None,
        as_json: AsJson = False,
    ) -> None:
        body = read_spec(spec)
        with connect(url, patience=FOLLOW_PATIENCE if watch else 1.0) as client:
            batches = batches_of(client)
            id = (batch := batches.submit(body))["id"]
            print_id(batch, watch=watch, as_json=as_json)
            if not watch:
                return
            ended = batches.wait(id, on_progress=None if as_json else _StatusLine())
            if as_json:
                print_json(ended)
            else:
                print_numbers(client, id)
            raise typer.Exit(OK if ended["status"] == "succeeded" else FAILED)

    @app.command(help=f"Cancel every experiment of a {kind} that has not ended.")
    def cancel(id: Id, url: Url = None, as_json: AsJson = False) -> None:
        with connect(url) as client:
            _print_batch(batches_of(client).cancel(id), as_json)

    @app.command(help=f"Requeue the failed experiments of a {kind}.")
    def retry(
        id: Id,
        state: Annotated[
            list[str] | None, typer.Option(help="failed (the default) or canceled; may be repeated.")
        ] = None,
        url: Url = None,
        as_json: AsJson = False,
    ) -> None:
        with connect(url) as client:
            _print_batch(batches_of(client).retry(id, state or ["failed"]), as_json)


_add_shared_commands(sweeps, "sweep", lambda client: client.sweeps, _print_cells)
_add_shared_commands(studies, "study", lambda client: client.studies, _print_table)


@sweeps.command("show")
def show_sweep(id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Print the status of a sweep, and its cells."""
    with connect(url) as client:
        sweep = client.sweeps.get(id)
        if as_json:
            print_json({**sweep, "cells": list(client.sweeps.cells(id))})
            return
        print_text(_describe_status(sweep))
        _print_cells(client, id)


@studies.command("show")
def show_study(id: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Print the status of a study."""
    with connect(url) as client:
        _print_batch(client.studies.get(id), as_json)


@studies.command()
def table(
    id: Id,
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "markdown",
    url: Url = None,
) -> None:
    """Print a study's table with the results so far."""
    if format not in FORMATS:
        raise CommandError(f"--format {format} is not allowed; allowed: {', '.join(FORMATS)}")
    with connect(url) as client:
        if format == "json":
            print_json(client.studies.table(id))
        else:
            print_document(client.studies.page(id, format))


@studies.command()
def extend(id: Id, more: File, url: Url = None, as_json: AsJson = False) -> None:
    """Add attacks, defenses or seeds to a study, and queue only the missing experiments."""
    body = read_spec(more)
    with connect(url) as client:
        _print_batch(client.studies.extend(id, body), as_json)
