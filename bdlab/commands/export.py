"""`bdlab export mlflow`."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from bdlab.commands.common import AsJson, CommandError, ExperimentId, Url, connect, print_result
from bdlab.mlflow_export import DEFAULT_NAME

app = typer.Typer(help="Copy an experiment to other tools.")


@app.callback()
def group() -> None:
    """Copy an experiment to other tools."""  # keeps `mlflow` a subcommand although it is the only one


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
        str, typer.Option(help="Name of the MLflow experiment; created if it does not exist.")
    ] = DEFAULT_NAME,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Copy the files too.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Copy an ended experiment to an MLflow tracking server and print its run's id. Needs the extra mlflow."""
    if tracking_uri is None:
        raise CommandError("give --tracking-uri URI, or set MLFLOW_TRACKING_URI")
    with connect(url, patience=10.0) as client:
        try:
            with redirect_stdout(sys.stderr):  # MLflow prints links to its pages
                run = client.to_mlflow(id, tracking_uri, name=experiment, files=files)
        except ValueError as error:
            raise CommandError(str(error)) from error
    print_result({"run_id": run}, as_json, run)
