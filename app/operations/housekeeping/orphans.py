"""Objects that nothing refers to, and rows whose object does not exist."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.core.objects import ObjectStoreError, Stored
from app.operations.housekeeping.report import Run
from app.operations.housekeeping.stages import NeededStages, is_idle
from app.results.artifacts.storage import delete_unreferenced, referenced
from app.tables.artifacts import Artifact
from app.tables.experiments import Stage
from app.tables.uploads import DATASET, MODEL, PENDING, READY, REFUSED, Upload, dataset_key, source_key

CONTENT = re.compile(r"(sha256/[0-9a-f]{2}/[0-9a-f]{64})")
STAGE = re.compile(r"stages/([0-9a-f]{64})\.safetensors")
CHECKPOINT = re.compile(r"checkpoints/([0-9a-f]{64})")
UPLOAD = re.compile(r"uploads/([0-9a-f-]{36})(?:\.safetensors)?")
PROBE = re.compile(r"(doctor-[0-9a-f-]{36})")
BATCH = 500
CHECKPOINT_DAYS = 30.0
"""Age at which the checkpoint of an idle, unfinished stage is deleted, unless the policy has ``stage_days``."""

FindOrphans = Callable[[Session, dict[str, Stored], dict[str, str]], set[str]]
"""Gets objects by key, and the id in each key; returns the keys of orphans."""


def collect_orphans(run: Run, needed_stages: NeededStages) -> None:
    """Report orphans and delete them if the run does; report rows whose object is missing."""
    context, began = run.context, utcnow()
    kinds: list[tuple[re.Pattern[str], str, FindOrphans]] = [
        (CONTENT, "files of deleted experiments", lambda s, _, ids: set(ids) - referenced(s, ids)),
        (STAGE, "stages without a row", _find_stages),
        (CHECKPOINT, "checkpoints of stages that are not computed", _checkpoint_finder(run, needed_stages)),
        (UPLOAD, "files of uploads that are deleted, refused or converted", _find_uploads),
        (PROBE, "test objects of `bdlab doctor` and `/readyz`", lambda _s, _, ids: set(ids)),
    ]
    modified_before = began - timedelta(hours=run.policy.grace_hours)
    listed = context.objects.list_all()
    old = {key: stored for key, stored in listed.items() if stored.modified < modified_before}
    for pattern, what, find_orphans in kinds:
        matches = sorted((key, match[1]) for key in old if (match := pattern.fullmatch(key)))
        for start in range(0, len(matches), BATCH):
            ids = dict(matches[start : start + BATCH])
            with context.database.whole.reading() as session:
                orphans = find_orphans(session, old, ids)
            if run.delete:
                _delete(run, orphans)
            for key in sorted(orphans):
                run.report.add("orphans", what, key, old[key].size)
    for what, size, name in _find_missing(run, listed):
        run.report.add("missing", what, name, size)


def _delete(run: Run, keys: set[str]) -> None:
    contents = {key for key in keys if CONTENT.fullmatch(key)}
    delete_unreferenced(run.context.database, run.context.objects, contents)
    try:
        run.context.objects.delete_all(keys - contents)
    except ObjectStoreError as error:
        run.report.remark(f"not deleted: {error}")


def _find_stages(session: Session, _objects: dict[str, Stored], ids: dict[str, str]) -> set[str]:
    """Stages that are neither ready nor being computed."""
    in_use = Stage.ready_at.is_not(None) | ~is_idle()
    kept = set(session.scalars(select(Stage.key).where(Stage.key.in_(ids.values()), in_use)))
    return {key for key, stage in ids.items() if stage not in kept}


def _checkpoint_finder(run: Run, needed_stages: NeededStages) -> FindOrphans:
    modified_after = utcnow() - timedelta(days=run.policy.stage_days or CHECKPOINT_DAYS)

    def find_checkpoints(session: Session, objects: dict[str, Stored], ids: dict[str, str]) -> set[str]:
        unfinished = select(Stage.key, is_idle()).where(Stage.key.in_(ids.values()), Stage.ready_at.is_(None))
        idle: dict[str, bool] = dict(session.execute(unfinished).all())

        def is_kept(key: str, stage: str) -> bool:
            recent = objects[key].modified >= modified_after or needed_stages.undecided is not None
            return stage in idle and (not idle[stage] or recent or stage in needed_stages.keys)

        return {key for key, stage in ids.items() if not is_kept(key, stage)}

    return find_checkpoints


def _find_uploads(session: Session, _objects: dict[str, Stored], ids: dict[str, str]) -> set[str]:
    rows = session.execute(select(Upload.id, Upload.kind, Upload.status).where(Upload.id.in_(ids.values())))
    kept: set[str] = set()
    for upload_id, kind, status in rows:  # the check of a data set converts it; refused uploads are not kept
        if status == PENDING or (kind == MODEL and status == READY):
            kept.add(source_key(upload_id))
        if kind == DATASET and status != REFUSED:
            kept.add(dataset_key(upload_id))
    return set(ids) - kept


def _find_missing(run: Run, listed: Mapping[str, Stored]) -> Iterator[tuple[str, int, str]]:
    """Rows whose object does not exist: kind, bytes, name."""
    files = select(Artifact.id, Artifact.object_key, Artifact.size, Artifact.experiment_id, Artifact.name)
    for rows in _pages(run, files.where(Artifact.expired_at.is_(None)), Artifact):
        for row in _without_object(run, listed, {row.object_key: row for row in rows}):
            yield "files of experiments without an object", row.size, f"{row.experiment_id}/{row.name}"
    uploads = select(Upload.id, Upload.kind, Upload.status, Upload.size).where(Upload.status != REFUSED)
    for rows in _pages(run, uploads, Upload):
        by_key = {
            source_key(r.id) if r.status == PENDING or r.kind == MODEL else dataset_key(r.id): r for r in rows
        }
        for row in _without_object(run, listed, by_key):
            yield "uploads without an object", row.size, f"{row.kind} {row.id}"


def _without_object(run: Run, listed: Mapping[str, Stored], rows: dict[str, Any]) -> list[Any]:
    # Objects may have been written since the listing.
    return [row for key, row in rows.items() if key not in listed and not run.context.objects.exists(key)]


def _pages(run: Run, query: Any, table: Any) -> Iterator[list[Any]]:
    """The rows of ``query`` sorted by the id of ``table``."""
    after = ""
    while True:
        with run.context.database.whole.reading() as session:
            page = query.where(table.id > after).order_by(table.id).limit(BATCH)
            rows = list(session.execute(page).all())
        if not rows:
            return
        after = rows[-1].id
        yield rows
