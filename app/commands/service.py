"""`bdlab up` and `bdlab version`."""

from importlib.metadata import version as installed
from typing import Annotated

import typer

from app.commands.common import NO_SERVICE, AsJson, CommandError, print_json
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


def migrate() -> None:
    """Bring the database to the current schema. `bdlab up` does this by itself."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # nothing else needs these

    from app.core import migrations  # noqa: PLC0415

    try:
        migrations.upgrade(Settings().database)
    except SQLAlchemyError as error:
        raise CommandError(f"the database: {str(error).splitlines()[0]}", NO_SERVICE) from error


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = installed("backdoor-lab")
    if as_json:
        print_json({"version": number})
    else:
        typer.echo(number)
