"""`bdlab up`, `bdlab worker`, `bdlab migrate` and `bdlab version`."""

import importlib.util
import os
import sys
from importlib.metadata import version as installed
from typing import Annotated, Literal

import typer

from app.settings import Settings
from bdlab.commands.common import NO_SERVICE, AsJson, CommandError, print_json

WorkerKind = Literal["training", "interactive", "checks"]


def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine's own are accepted.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Start the service: API, relay, workers and broker. Ctrl-C stops all of it."""
    from app.operations.supervisor import up as supervise  # noqa: PLC0415  # nothing else needs it

    raise typer.Exit(supervise(Settings(), host, port))


def worker(
    kind: Annotated[
        WorkerKind,
        typer.Argument(
            help="training runs experiments; interactive answers previews; checks looks at uploads."
        ),
    ] = "training",
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="The GPU to use: its number or UUID; `none`: no GPU. Default: the first that is visible.",
        ),
    ] = None,
    queue: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(help="What to train: default gpu where there is one, else cpu.", show_default=False),
    ] = None,
) -> None:
    """Run one worker, with the service's settings. SIGTERM makes it hand its experiment back and end."""
    if importlib.util.find_spec("torch") is None:
        raise CommandError("torch is not installed here; workers need it", NO_SERVICE)
    chosen = [f"--{name}={value}" for name, value in (("gpu", gpu), ("queue", queue)) if value is not None]
    # In place of this process, so that whoever started it signals the worker itself.
    os.execv(sys.executable, [sys.executable, "-m", "worker", kind, *chosen])


def migrate() -> None:
    """Bring the database to the current schema. `bdlab up` does this by itself."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # nothing else needs these

    from app.operations import schema  # noqa: PLC0415

    try:
        schema.upgrade(Settings().database)
    except SQLAlchemyError as error:
        raise CommandError(f"the database: {str(error).splitlines()[0]}", NO_SERVICE) from error


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = installed("backdoor-lab")
    if as_json:
        print_json({"version": number})
    else:
        typer.echo(number)
