"""`bdlab backup` and `bdlab restore`: database, objects, secret and imported data sets, in one folder.

A backup is consistent although the service runs, because the database is copied before the objects. The service writes
an object before the row that refers to it, and deletes the row first. So every object that the copied rows refer to
exists when the objects are copied, unless it is deleted in between. Objects written meanwhile become orphans, which
housekeeping collects. In the other order, rows could refer to objects written after the objects were copied.
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
from app.operations.backup import databases
from app.operations.backup.databases import BackupError
from app.operations.backup.objects import copy_objects
from app.settings import Settings

MANIFEST, SECRET, DATA, OBJECTS = "backup.json", "secret", "data", "objects"
FETCHED = "uploaded"
"""Folder of the data sets that workers download from the object store themselves."""


class Backup(BaseModel):
    """The contents of a backup."""

    made_at: datetime
    version: str = Field(description="Of backdoor-lab.")
    revision: str = Field(description="Of the database's schema.")
    database: str = Field(description="Name of its file.")
    objects: int
    bytes: int = Field(description="Of the objects.")
    data_sets: list[str]


class BackupResult(BaseModel):
    """What a backup or a restore did."""

    backup: Backup
    copied: int = Field(description="Objects that were not there from an earlier backup.")
    damaged: list[str] = Field(description="Objects whose content does not match their key; not copied.")
    remarks: list[str]


def create_backup(settings: Settings, folder: Path) -> BackupResult:
    """Back up the service to ``folder``, or update the backup there. The service may run.

    An earlier backup in the folder stays valid until the end. Raises BackupError, ObjectStoreError, OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_folder(folder):
        name, began = databases.file_name(settings.database), utcnow()
        database, manifest = folder / f"{name}.new", folder / f"{MANIFEST}.new"
        database.unlink(missing_ok=True)  # of an interrupted backup
        revision = databases.save(settings.database, database)
        source, target = Objects(settings.objects), _backup_objects(folder)
        listed = source.list_all()
        copied = copy_objects(source, listed, target)
        backup = Backup(
            made_at=began,
            version=version("backdoor-lab"),
            revision=revision,
            database=name,
            objects=len(listed),
            bytes=sum(stored.size for stored in listed.values()),
            data_sets=_copy_data_sets(settings.datasets, folder / DATA),
        )
        remarks = _save_secret(settings, folder / SECRET)
        manifest.write_text(backup.model_dump_json(indent=2) + "\n")
        os.sync()  # everything is on disk before it replaces the earlier backup
        database.replace(folder / name)
        manifest.replace(folder / MANIFEST)
        target.delete_all(target.list_all().keys() - listed.keys())
    return BackupResult(backup=backup, copied=copied.count, damaged=copied.damaged, remarks=remarks)


def restore_backup(settings: Settings, folder: Path) -> BackupResult:
    """Restore the backup in ``folder`` to the back ends of ``settings``.

    The database must not exist yet. It is restored last, so an interrupted restore can be repeated. Raises BackupError,
    ObjectStoreError, OSError.
    """
    backup = _read_manifest(folder)
    name = databases.file_name(settings.database)
    if backup.database != name:
        raise BackupError(f"the backup has a {backup.database}, but BDLAB_DATABASE_URL requires a {name}")
    if not schema.is_known(backup.revision):
        raise BackupError(
            f"the backup is of backdoor-lab {backup.version}, schema {backup.revision}, which this version does not "
            "know; update it"
        )
    databases.check_free(settings.database)
    remarks = _restore_secret(settings, folder / SECRET)
    source, target = _backup_objects(folder), Objects(settings.objects)
    copied = copy_objects(source, source.list_all(), target)
    _copy_data_sets(folder / DATA, settings.datasets)
    databases.restore(settings.database, folder / backup.database)
    return BackupResult(backup=backup, copied=copied.count, damaged=copied.damaged, remarks=remarks)


def _backup_objects(folder: Path) -> Objects:
    return Objects((folder / OBJECTS).resolve().as_uri())


def _read_manifest(folder: Path) -> Backup:
    try:
        return Backup.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise BackupError(f"{folder} has no finished backup: there is no {MANIFEST} in it") from error
    except ValidationError as error:
        raise BackupError(f"{folder / MANIFEST} is damaged") from error


def _copy_data_sets(source: Path, target: Path) -> list[str]:
    """Copy the data sets that ``target`` lacks. Returns the names of all.

    They are never modified, so a file of equal size and time is equal.
    """
    names = []
    for path in sorted(source.rglob("*.safetensors")):
        name = path.relative_to(source)
        if FETCHED in name.parts[:-1] or path.name.startswith("."):
            continue
        names.append(name.with_suffix("").as_posix())
        stat, copy = path.stat(), target / name
        if copy.exists() and (copy.stat().st_size, copy.stat().st_mtime_ns) == (
            stat.st_size,
            stat.st_mtime_ns,
        ):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f".{copy.name}.partial")
        shutil.copy2(path, partial)
        partial.replace(copy)
    return names


def _save_secret(settings: Settings, path: Path) -> list[str]:
    """Copy the secret if it is a file under home. Returns a remark on each one that comes from the environment."""
    file = settings.home_dir / "secret"
    if not settings.secret.get_secret_value() and file.exists():
        _write_secret(path, file.read_bytes())
    names = [name for name in ("secret", "key_pepper") if getattr(settings, name).get_secret_value()]
    return [
        f"BDLAB_{name.upper()} is not in the backup; keep it elsewhere: API keys are invalid without it"
        for name in names
    ]


def _restore_secret(settings: Settings, path: Path) -> list[str]:
    if not path.exists():
        return ["the secret is not in the backup; set BDLAB_SECRET to its previous value"]
    if settings.secret.get_secret_value():
        return [f"BDLAB_SECRET is used instead of {path}; the backup's API keys are invalid if they differ"]
    file = settings.home_dir / "secret"
    if file.exists() and file.read_bytes() != path.read_bytes():
        raise BackupError(f"there is another secret already: {file}; stop the service and move it away")
    settings.home_dir.mkdir(parents=True, exist_ok=True)
    _write_secret(file, path.read_bytes())
    return []


def _write_secret(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Raises BackupError if another backup to the folder is running."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BackupError(f"another backup to {folder} is running") from error
        yield
