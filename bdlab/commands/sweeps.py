"""`bdlab sweep`: submit, follow, cancel and retry a grid of experiments."""

from typing import Annotated, Any

import typer

from app.specs.sweep import format_coordinates
from bdlab.base_client import Client
from bdlab.commands.common import AsJson, Url, connect, out, print_json
from bdlab.commands.experiments import PATIENCE, read_spec
from bdlab.commands.many import States, SubmitsFiles, follow, standing
from bdlab.commands.tables import plain

app = typer.Typer(cls=SubmitsFiles, help="A base spec and a grid: `bdlab sweep FILE` submits it.")

SweepId = Annotated[str, typer.Argument(metavar="ID", help="The sweep's id.")]


@app.command()
def submit(
    spec: Annotated[
        str, typer.Argument(metavar="FILE", help="File with the sweep as JSON; - is standard input.")
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it to its end, then print the cells.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a sweep and print its id."""
    body = read_spec(spec)
    with connect(url, patience=PATIENCE if watch else 1.0) as client:
        made = client.sweeps.submit(body)
        if as_json and not watch:
            print_json(made)
        elif not as_json:
            typer.echo(made["id"])
        if watch:
            raise typer.Exit(follow(client, client.sweeps, made["id"], _print_cells, as_json=as_json))


@app.command()
def show(id: SweepId, url: Url = None, as_json: AsJson = False) -> None:
    """Print how a sweep stands, and its cells."""
    with connect(url) as client:
        found = client.sweeps.get(id)
        if as_json:
            print_json({**found, "cells": list(client.sweeps.cells(id))})
            return
        typer.echo(standing(found))
        _print_cells(client, id)


@app.command()
def cancel(id: SweepId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel every experiment of a sweep that has not ended."""
    with connect(url) as client:
        _tell(client.sweeps.cancel(id), as_json)


@app.command()
def retry(id: SweepId, state: States = None, url: Url = None, as_json: AsJson = False) -> None:
    """Queue the failed experiments of a sweep again."""
    with connect(url) as client:
        _tell(client.sweeps.retry(id, state or ["failed"]), as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['id']} {standing(found)}")


def _print_cells(client: Client, id: str) -> None:
    """One row a cell: clean accuracy and attack success of every arm that is done, in percent."""
    rows = [
        (
            cell["number"],
            format_coordinates(cell["coordinates"]),
            cell["status"],
            cell["experiment_id"] or "",
            *_arms(cell),
        )
        for cell in client.sweeps.cells(id)
    ]
    out.print(plain("", ("cell", "coordinates", "status", "id", "clean accuracy / attack success"), rows))


def _arms(cell: dict[str, Any]) -> list[str]:
    shown = [
        f"{arm['arm']} {_percent(arm['clean_accuracy'])} / {_percent(arm['attack_success_rate'])}"
        for arm in cell["summary"]
    ]
    return ["; ".join(shown)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
