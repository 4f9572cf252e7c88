"""The one check for the packages that server commands need, and the one place where their errors become one line."""

import re
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import Abort, TyperException

from bdlab.commands.common import BAD_INPUT, NO_SERVICE, NOT_FOUND, CommandError
from bdlab.errors import BdlabError

if TYPE_CHECKING:
    from pydantic import ValidationError

DISTRIBUTION = "backdoor-lab"
EXPECTED = (typer.Exit, Abort, TyperException, CommandError, BdlabError, OSError)
"""What `bdlab.cli.main` handles."""


def needs(*extras: str) -> type[TyperCommand]:
    """The class of a command that needs these extras; without one it ends with a line that says what to install."""

    class ServerCommand(TyperCommand):
        def invoke(self, ctx: Any) -> Any:
            missing = [extra for extra in extras if not is_installed(extra)]
            if missing:
                raise CommandError(
                    f'"{ctx.command_path}" needs the {" and the ".join(missing)}: '
                    f'pip install "{DISTRIBUTION}[{",".join(missing)}]"'
                )
            from app.core.security import keep_files_private

            keep_files_private()
            try:
                return super().invoke(ctx)
            except EXPECTED:
                raise
            except Exception as error:
                command_error = _as_command_error(error)
                if command_error is None:
                    raise
                raise command_error from error

    return ServerCommand


def is_installed(extra: str) -> bool:
    """Whether every package of the extra is installed."""
    for requirement in requires(DISTRIBUTION) or []:
        name, _, marker = requirement.partition(";")
        if f'extra == "{extra}"' in marker:
            try:
                distribution(re.split(r"[^\w.-]", name, maxsplit=1)[0])
            except PackageNotFoundError:
                return False
    return True


def first_fault(error: "ValidationError") -> tuple[str, Any, str]:
    """Field, value and message of the first invalid field."""
    fault = error.errors()[0]
    return ".".join(map(str, fault["loc"])), fault["input"], fault["msg"]


def _as_command_error(error: Exception) -> CommandError | None:
    """The one line for an error of the server's code; None for a bug."""
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError

    from app.core.errors import InvalidError, NotFoundError
    from app.core.objects import ObjectStoreError
    from app.operations.backup.databases import BackupError
    from app.operations.schema import NewerSchemaError
    from app.settings import explain

    match error:
        case ValidationError() if error.title == "Settings":
            return CommandError(explain(error), BAD_INPUT)
        case NotFoundError() | InvalidError():
            return CommandError(error.detail, NOT_FOUND if error.status == 404 else BAD_INPUT)
        case BackupError() | NewerSchemaError():
            return CommandError(str(error), BAD_INPUT)
        case ObjectStoreError():
            return CommandError(str(error), NO_SERVICE)
        case SQLAlchemyError():
            return CommandError(f"the database: {str(error).splitlines()[0]}", NO_SERVICE)
    return None
