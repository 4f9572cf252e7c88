"""`bdlab gc`, on the service's database and object store."""

from pathlib import Path
from typing import Annotated

import typer

from bdlab.commands.common import AsJson, CommandError, print_json, print_text
from bdlab.commands.server.extras import first_fault


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete; by default nothing is deleted.")] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="File with a retention policy as JSON. Default: BDLAB_RETENTION.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete files that the retention policy no longer keeps, and orphans; a dry run unless --delete."""
    from pydantic import ValidationError

    from app.core.context import Context
    from app.operations import schema
    from app.operations.housekeeping.report import describe
    from app.operations.housekeeping.service import run_housekeeping
    from app.settings import RetentionPolicy, Settings

    settings = Settings()
    retention = settings.retention
    if policy is not None:
        try:
            retention = RetentionPolicy.model_validate_json(policy.read_bytes())
        except ValidationError as error:
            field, _, message = first_fault(error)
            raise CommandError(f"{policy}: {field or 'policy'}: {message}") from None
    schema.upgrade(settings.database)
    context = Context.open(settings)
    try:
        report = run_housekeeping(context, retention, delete=delete)
    finally:
        context.close()
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    for line in describe(report):
        print_text(line)
    if not delete:
        print_text("this was a dry run; --delete does it")
