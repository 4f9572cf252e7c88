"""Objects that belong to nothing, and rows whose object is not there."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.objects import ObjectStoreError
from app.operations.housekeeping.inventory import BATCH, Inventory, Stored
from app.operations.housekeeping.report import Tally
from app.operations.housekeeping.stages import InUse, free
from app.results.artifacts.storage import drop, needed
from app.settings import RetentionPolicy
from app.tables.artifacts import Artifact
from app.tables.experiments import Stage
from app.tables.uploads import DATASET, MODEL, PENDING, READY, REFUSED, Upload, dataset_key, source_key

FILE = re.compile(r"sha256/[0-9a-f]{2}/[0-9a-f]{64}")
STAGE = re.compile(r"stages/([0-9a-f]{64})\.safetensors")
CHECKPOINT = re.compile(r"checkpoints/([0-9a-f]{64})")
UPLOAD = re.compile(r"uploads/([0-9a-f-]{36})(?:\.safetensors)?")
PROBE = re.compile(r"doctor-[0-9a-f-]{36}")
UNUSED_DAYS = 30.0
"""After so long the checkpoint of a stage goes that nobody computes any more, where the policy does not say."""

Judge = Callable[[Session, dict[str, Stored]], set[str]]


def sweep(context: Context, policy: RetentionPolicy | None, used: InUse, delete: bool, tally: Tally) -> None:
    """Delete, or only count, what belongs to nothing; and count what is missing."""
    began = utcnow()
    days = policy.stage_days if policy is not None and policy.stage_days is not None else UNUSED_DAYS
    grace = timedelta(hours=(policy or RetentionPolicy()).grace_hours)
    judges: list[tuple[re.Pattern[str], str, Judge]] = [
        (FILE, "files of experiments that are deleted", lambda s, found: set(found) - needed(s, found)),
        (STAGE, "stages without a row", _stages),
        (
            CHECKPOINT,
            "checkpoints of stages that nobody computes",
            _checkpoints(used, began - timedelta(days=days)),
        ),
        (UPLOAD, "files of uploads that are deleted, refused, or converted", _uploads),
        (PROBE, "objects that `bdlab doctor` left", lambda _s, found: set(found)),
    ]
    with Inventory(context.objects) as inventory:
        for page in inventory.pages():
            rest = {stored.key: stored for stored in page}
            for pattern, what, judge in judges:
                mine = {key: rest.pop(key) for key in list(rest) if pattern.fullmatch(key)}
                old = {key: stored for key, stored in mine.items() if stored.modified < began - grace}
                if not old:
                    continue
                with context.database.whole.reading() as session:
                    gone = judge(session, old)
                if delete:
                    _delete(context, gone, tally)
                for key in sorted(gone):
                    tally.add("orphans", what, key, old[key].size)
            for key, stored in rest.items():
                tally.add("unknown", "objects that are not the service's", key, stored.size)
        for what, size, name in _lacking(context, inventory, began):
            tally.add("missing", what, name, size)


def _delete(context: Context, keys: set[str], tally: Tally) -> None:
    files = {key for key in keys if FILE.fullmatch(key)}
    drop(context.database, context.objects, files)
    try:
        context.objects.delete_all(keys - files)
    except ObjectStoreError as error:
        tally.remark(f"not deleted: {error}")


def _ids(pattern: re.Pattern[str], keys: Iterable[str]) -> dict[str, str]:
    """By key, the id in it."""
    return {key: match[1] for key in keys if (match := pattern.fullmatch(key))}


def _stages(session: Session, found: dict[str, Stored]) -> set[str]:
    """Those that are neither ready nor about to be."""
    ids = _ids(STAGE, found)
    needed_by = Stage.ready_at.is_not(None) | ~free()
    kept = set(session.scalars(select(Stage.key).where(Stage.key.in_(ids.values()), needed_by)))
    return {key for key, stage in ids.items() if stage not in kept}


def _checkpoints(used: InUse, since: datetime) -> Judge:
    def judge(session: Session, found: dict[str, Stored]) -> set[str]:
        ids = _ids(CHECKPOINT, found)
        unfinished = select(Stage.key, free()).where(Stage.key.in_(ids.values()), Stage.ready_at.is_(None))
        idle: dict[str, bool] = dict(session.execute(unfinished).all())

        def stays(key: str, stage: str) -> bool:
            young = found[key].modified >= since or used.unknown is not None
            return stage in idle and (not idle[stage] or young or stage in used.keys)

        return {key for key, stage in ids.items() if not stays(key, stage)}

    return judge


def _uploads(session: Session, found: dict[str, Stored]) -> set[str]:
    ids = _ids(UPLOAD, found)
    rows = session.execute(select(Upload.id, Upload.kind, Upload.status).where(Upload.id.in_(ids.values())))
    kept = {key for row in rows for key in _files_of(*row)}
    return set(ids) - kept


def _files_of(upload_id: str, kind: str, status: str) -> list[str]:
    """The objects that an upload may have: a data set is converted by its check, and what is refused is not kept."""
    source = [source_key(upload_id)] if status == PENDING or (kind == MODEL and status == READY) else []
    return source + ([dataset_key(upload_id)] if kind == DATASET and status != REFUSED else [])


def _lacking(context: Context, inventory: Inventory, began: datetime) -> Iterator[tuple[str, int, str]]:
    """What there is a row of, but no object: kind, bytes, name."""
    files = (Artifact.id, Artifact.object_key, Artifact.size, Artifact.experiment_id, Artifact.name)
    live = (Artifact.expired_at.is_(None), Artifact.created_at < began)
    for rows in _pages(context, files, live):
        for row in _really(context, inventory, {row.object_key: row for row in rows}):
            yield (
                "files of experiments whose object is not there",
                row.size,
                f"{row.experiment_id}/{row.name}",
            )
    uploads = (Upload.id, Upload.kind, Upload.status, Upload.size)
    for rows in _pages(context, uploads, (Upload.status != REFUSED, Upload.created_at < began)):
        wanted = {
            source_key(r.id) if r.status == PENDING or r.kind == MODEL else dataset_key(r.id): r for r in rows
        }
        for row in _really(context, inventory, wanted):
            yield "uploads whose object is not there", row.size, f"{row.kind} {row.id}"


def _really(context: Context, inventory: Inventory, rows: dict[str, Any]) -> list[Any]:
    """The rows whose object is not there now either."""
    return [rows[key] for key in inventory.lacks(rows) if not context.objects.exists(key)]


def _pages(context: Context, columns: tuple[Any, ...], conditions: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Rows by their first column, the key."""
    after = ""
    while True:
        query = select(*columns).where(columns[0] > after, *conditions).order_by(columns[0]).limit(BATCH)
        with context.database.whole.reading() as session:
            rows = list(session.execute(query).all())
        if not rows:
            return
        after = rows[-1][0]
        yield rows
