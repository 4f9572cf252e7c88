"""`bdlab up` and `bdlab version`."""

from importlib.metadata import version as installed
from typing import Annotated

import typer

from app.commands.common import AsJson, print_json
from app.settings import Settings


def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine's own are accepted.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Start the service: API, relay, workers and broker. Ctrl-C stops all of it."""
    from app.supervisor import up as supervise  # noqa: PLC0415  # nothing else needs it

    raise typer.Exit(supervise(Settings(), host, port))


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = installed("backdoor-lab")
    if as_json:
        print_json({"version": number})
    else:
        typer.echo(number)
