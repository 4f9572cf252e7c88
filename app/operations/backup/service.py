"""`bdlab backup` and `bdlab restore`: database, objects, secret and imported data sets, in one folder.

The order is what makes a copy good that is taken while the service runs. The service writes an object before the row
that names it, and deletes the row before the object. So the database is copied first: whatever its rows name is
there already when the objects are copied afterwards, and stays there, unless somebody deletes it in between. Objects
that came meanwhile have no row in the copy; the sweep of `app.operations.housekeeping` takes them for what they are.
The other way round there would be rows of files that were written after the objects were copied.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from app.core.database import utcnow
from app.core.objects import Objects
from app.operations import schema
from app.operations.backup import databases, files
from app.operations.backup.databases import BackupError
from app.operations.housekeeping.inventory import Inventory
from app.settings import Settings

FACTS, SECRET, DATA, OBJECTS = "backup.json", "secret", "data", "objects"
FETCHED = "uploaded"
"""Folder of the data sets that workers fetch from the object store by themselves."""
PRIVATE = 0o700


class Backup(BaseModel):
    """What a backup holds."""

    made_at: datetime
    version: str = Field(description="Of backdoor-lab.")
    revision: str = Field(description="Of the database's schema.")
    database: str = Field(description="Name of its file.")
    objects: int
    bytes: int = Field(description="Of the objects.")
    data_sets: list[str]


class Done(BaseModel):
    """What a backup or a restore did."""

    backup: Backup
    copied: int = Field(description="Objects that were not there from an earlier backup.")
    damaged: list[str] = Field(
        description="Objects that do not hold what their key says; they were not copied."
    )
    remarks: list[str]


def save(settings: Settings, folder: Path) -> Done:
    """Make ``folder`` a backup of the service as it is now, or bring the backup there up to date.

    The service may run. Until the end an earlier backup in the folder stays good, since objects are only added.
    Raises BackupError, ObjectStoreError, OSError.
    """
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with _alone(folder):
        name = databases.file_name(settings.database)
        database = folder / f"{name}.new"
        database.unlink(missing_ok=True)  # of a backup that was broken off
        began = utcnow()
        revision = databases.save(settings.database, database)
        target = Objects((folder / OBJECTS).resolve().as_uri())
        source = Objects(settings.objects)
        with Inventory(source) as there:
            copied = files.copy(source, there, target)
            sets = _copy_data(settings.datasets, folder / DATA)
            remarks = _save_secret(settings, folder / SECRET)
            facts = Backup(
                made_at=began,
                version=version("backdoor-lab"),
                revision=revision,
                database=name,
                objects=copied.objects,
                bytes=copied.bytes,
                data_sets=sets,
            )
            new = folder / f"{FACTS}.new"
            new.write_text(facts.model_dump_json(indent=2) + "\n")
            os.sync()  # all of it is on the disk before it counts
            database.replace(folder / name)
            new.replace(folder / FACTS)
            files.prune(target, there)
    return Done(backup=facts, copied=copied.new, damaged=copied.damaged, remarks=remarks)


def restore(settings: Settings, folder: Path) -> Done:
    """Make the service of ``settings`` what it was at the time of the backup in ``folder``.

    There must be no database yet. It comes last, so that a restore which was broken off can be done again.
    Raises BackupError, ObjectStoreError, OSError.
    """
    facts = _facts(folder)
    wanted = databases.file_name(settings.database)
    if facts.database != wanted:
        raise BackupError(
            f"the backup's {facts.database} and BDLAB_DATABASE_URL do not fit; that one takes {wanted}"
        )
    if not schema.is_known(facts.revision):
        raise BackupError(
            f"the backup is of backdoor-lab {facts.version}, schema {facts.revision}, which this one does not know; "
            "update it"
        )
    databases.check_free(settings.database)
    remarks = _restore_secret(settings, folder / SECRET)
    source, target = Objects((folder / OBJECTS).resolve().as_uri()), Objects(settings.objects)
    with Inventory(source) as there:
        copied = files.copy(source, there, target)
    _copy_data(folder / DATA, settings.datasets)
    databases.restore(settings.database, folder / facts.database)
    return Done(backup=facts, copied=copied.new, damaged=copied.damaged, remarks=remarks)


def _facts(folder: Path) -> Backup:
    try:
        return Backup.model_validate_json((folder / FACTS).read_bytes())
    except FileNotFoundError as error:
        raise BackupError(f"{folder} holds no finished backup: there is no {FACTS} in it") from error
    except ValidationError as error:
        raise BackupError(f"{folder / FACTS} is damaged") from error


def _copy_data(source: Path, target: Path) -> list[str]:
    """Copy the data sets that ``target`` lacks; returns the names of all. They are written once and renamed into
    place, so one of the same size and time is the same."""
    names = []
    for path in sorted(source.rglob("*.safetensors")):
        name = path.relative_to(source)
        if FETCHED in name.parts[:-1] or path.name.startswith("."):
            continue
        names.append(name.with_suffix("").as_posix())
        there, mine = path.stat(), target / name
        if mine.exists() and (mine.stat().st_size, mine.stat().st_mtime_ns) == (
            there.st_size,
            there.st_mtime_ns,
        ):
            continue
        mine.parent.mkdir(parents=True, exist_ok=True)
        partial = mine.with_name(f".{mine.name}.partial")
        shutil.copy2(path, partial)
        partial.replace(mine)
    return names


def _save_secret(settings: Settings, path: Path) -> list[str]:
    """Copy the secret if it is a file under home; what comes from the environment is its keeper's to keep."""
    kept = [
        f"BDLAB_{name.upper()}"
        for name in ("secret", "key_pepper")
        if getattr(settings, name).get_secret_value()
    ]
    mine = settings.home_dir / "secret"
    if not settings.secret.get_secret_value() and mine.exists():
        _write_secret(path, mine.read_bytes())
    return [
        f"{name} is not in the backup; keep it elsewhere, without it no API key is known" for name in kept
    ]


def _restore_secret(settings: Settings, path: Path) -> list[str]:
    if not path.exists():
        return ["the secret is not in the backup; set BDLAB_SECRET to what it was"]
    mine = settings.home_dir / "secret"
    if settings.secret.get_secret_value():
        return [f"BDLAB_SECRET is set, so {path} is not used; without it the backup's API keys are not known"]
    if mine.exists() and mine.read_bytes() != path.read_bytes():
        raise BackupError(f"there is another secret already: {mine}; stop the service and move it away")
    settings.home_dir.mkdir(parents=True, exist_ok=True)
    _write_secret(mine, path.read_bytes())
    return []


def _write_secret(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises BackupError if another backup is being made in the folder."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BackupError(f"another backup is being made in {folder}") from error
        yield
