"""`bdlab gc`: it works on the database and the object store themselves, with the settings of the service."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.settings import Settings
from bdlab.commands.common import NO_SERVICE, AsJson, CommandError, print_json


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this it is only told.")] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A policy as JSON in a file, instead of the one of BDLAB_RETENTION.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete files that the retention policy lets go, and what belongs to nothing; a dry run unless --delete."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  # the client's commands need none of these

    from app.core.context import Context  # noqa: PLC0415
    from app.core.objects import ObjectStoreError  # noqa: PLC0415
    from app.operations import schema  # noqa: PLC0415
    from app.operations.housekeeping.report import describe  # noqa: PLC0415
    from app.operations.housekeeping.service import run_housekeeping  # noqa: PLC0415
    from app.settings import RetentionPolicy  # noqa: PLC0415

    settings = Settings()
    chosen = settings.retention
    if policy is not None:
        try:
            chosen = RetentionPolicy.model_validate_json(policy.read_bytes())
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"])) or "policy"
            raise CommandError(f"{policy}: {field}: {fault['msg']}") from None
    try:
        schema.upgrade(settings.database)
        context = Context.open(settings)
        try:
            report = run_housekeeping(context, chosen, delete=delete)
        finally:
            context.close()
    except (SQLAlchemyError, ObjectStoreError) as error:
        raise CommandError(str(error).splitlines()[0], NO_SERVICE) from error
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    for line in describe(report):
        typer.echo(line)
    if not delete:
        typer.echo("this was a dry run; --delete does it")
