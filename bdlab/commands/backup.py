"""`bdlab backup` and `bdlab restore`: they work on the back ends themselves, with the settings of the service."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.settings import Settings
from bdlab.commands.common import FAILED, NO_SERVICE, AsJson, CommandError, err, print_json

if TYPE_CHECKING:
    from app.operations.backup.service import BackupResult


def backup(
    folder: Annotated[
        Path, typer.Argument(help="Where to; a backup that is there already is brought up to date.")
    ],
    as_json: AsJson = False,
) -> None:
    """Copy database, files, secret and data sets to a folder, while the service runs."""
    from app.operations.backup.service import create_backup  # noqa: PLC0415  # the client's commands need none of this

    done = _do(create_backup, folder)
    _tell(done, f"backed up in {folder}: {_held(done)}; {done.copied} of the files are new", as_json)


def restore(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `bdlab backup` made.", exists=True, file_okay=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Bring back what a backup holds. The service must be stopped, and its database not there or empty."""
    from app.operations.backup.service import restore_backup  # noqa: PLC0415

    done = _do(restore_backup, folder)
    made = done.backup.made_at.isoformat(sep=" ", timespec="seconds")
    _tell(done, f"restored as of {made}: {_held(done)}", as_json)


def _do(work: "Callable[[Settings, Path], BackupResult]", folder: Path) -> "BackupResult":
    from app.core.objects import ObjectStoreError  # noqa: PLC0415
    from app.operations.backup.databases import BackupError  # noqa: PLC0415

    try:
        return work(Settings(), folder)
    except BackupError as error:
        raise CommandError(str(error)) from error
    except ObjectStoreError as error:
        raise CommandError(str(error), NO_SERVICE) from error


def _held(done: "BackupResult") -> str:
    held = done.backup
    return f"the database, {held.objects} files of {held.bytes} bytes, {len(held.data_sets)} data sets"


def _tell(done: "BackupResult", line: str, as_json: bool) -> None:
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        typer.echo(line)
    for remark in done.remarks:
        err.print(remark, markup=False)
    for key in done.damaged:
        err.print(f"damaged, not copied: {key}", markup=False)
    if done.damaged:
        raise typer.Exit(FAILED)
