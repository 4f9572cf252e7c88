"""`bdlab export mlflow`."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from bdlab.commands.common import CommandError, ExperimentId, Url, connect, print_json
from bdlab.mlflow_export import DEFAULT_NAME
from bdlab.mlflow_export import export as export_to_mlflow

app = typer.Typer(help="Copy an experiment to other tools.")


@app.callback()
def group() -> None:
    """Copy an experiment to other tools."""


@app.command()
def mlflow(
    id: ExperimentId,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI", help="The tracking server, such as http://127.0.0.1:5000."
        ),
    ] = None,
    experiment: Annotated[
        str, typer.Option(help="Name of MLflow's experiment; made if need be.")
    ] = DEFAULT_NAME,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Copy the files too.")] = True,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy an experiment that has ended to an MLflow tracking server, and print its run's id. Needs mlflow-skinny."""
    if tracking_uri is None:
        raise CommandError("give --tracking-uri URI, or set MLFLOW_TRACKING_URI")
    with connect(url, patience=10.0) as client:
        try:
            with redirect_stdout(sys.stderr):  # MLflow prints links to its pages
                run = export_to_mlflow(client, id, tracking_uri, name=experiment, files=files)
        except ValueError as error:
            raise CommandError(str(error)) from error
    if as_json:
        print_json({"run_id": run})
    else:
        typer.echo(run)
