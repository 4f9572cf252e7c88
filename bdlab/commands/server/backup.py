"""`bdlab backup` and `bdlab restore`, on the service's database and object store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdlab.commands.common import FAILED, AsJson, err, print_result

if TYPE_CHECKING:
    from app.operations.backup.service import BackupResult


def backup(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; an existing backup in it is updated.")],
    as_json: AsJson = False,
) -> None:
    """Copy database, files, secret and datasets to a folder, while the service runs."""
    from app.operations.backup.service import create_backup
    from app.settings import Settings

    done = create_backup(Settings(), folder)
    _print(done, f"backed up in {folder}: {_contents(done)}; {done.copied} of the files are new", as_json)


def restore(
    folder: Annotated[
        Path, typer.Argument(help="A folder written by `bdlab backup`.", exists=True, file_okay=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Restore a backup. The service must be stopped, and its database must be empty or not exist."""
    from app.operations.backup.service import restore_backup
    from app.settings import Settings

    done = restore_backup(Settings(), folder)
    made_at = done.backup.made_at.isoformat(sep=" ", timespec="seconds")
    _print(done, f"restored as of {made_at}: {_contents(done)}", as_json)


def _contents(done: "BackupResult") -> str:
    backup = done.backup
    return f"the database, {backup.objects} files of {backup.bytes} bytes, {len(backup.data_sets)} datasets"


def _print(done: "BackupResult", text: str, as_json: bool) -> None:
    print_result(done.model_dump(mode="json"), as_json, text)
    for remark in done.remarks:
        err.print(remark)
    for key in done.damaged:
        err.print(f"damaged, not copied: {key}")
    if done.damaged:
        raise typer.Exit(FAILED)
