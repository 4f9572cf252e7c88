"""`bdlab up`, `bdlab worker` and `bdlab migrate`."""

import os
import sys
from typing import Annotated, Literal

import typer

WorkerKind = Literal["training", "interactive", "checks"]


def up(
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; while there is no API key, only addresses of this machine are allowed."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")
    ] = 8000,
) -> None:
    """Start the service: API, relay, workers and broker. Ctrl-C stops all of it."""
    from app.operations.supervisor import up as supervise
    from app.settings import Settings

    raise typer.Exit(supervise(Settings(), host, port))


def worker(
    kind: Annotated[
        WorkerKind,
        typer.Argument(
            help="training runs experiments, interactive answers previews, checks validates uploads."
        ),
    ] = "training",
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="The GPU to use: its number or UUID, or `none`. Default: the first visible GPU.",
        ),
    ] = None,
    queue: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(help="Queue to consume. Default: gpu if there is a GPU, else cpu.", show_default=False),
    ] = None,
) -> None:
    """Run one worker, with the service's settings. On SIGTERM it requeues its experiment and exits."""
    options = [f"--{name}={value}" for name, value in (("gpu", gpu), ("queue", queue)) if value is not None]
    # In place of this process, so that signals reach the worker itself.
    os.execv(sys.executable, [sys.executable, "-m", "worker", kind, *options])


def migrate() -> None:
    """Upgrade the database to the current schema. `bdlab up` does this automatically."""
    from app.operations import schema
    from app.settings import Settings

    schema.upgrade(Settings().database)
