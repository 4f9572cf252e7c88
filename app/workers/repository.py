"""Queries about workers. Each function is given an open session; none commits."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.experiments.tables import QUEUED, RUNNING, Experiment, WorkerHeartbeat
from app.uploads.tables import PENDING, Upload

ALIVE_SECONDS = 30.0
"""A worker that was not seen for so long is taken for dead."""


class Length(NamedTuple):
    """Of a queue. ``oldest`` is since when its oldest entry waits; None what is not counted."""

    waiting: int
    running: int | None
    oldest: datetime | None


def known(session: Session) -> Sequence[WorkerHeartbeat]:
    """Every worker that is not forgotten yet."""
    return session.scalars(select(WorkerHeartbeat).order_by(WorkerHeartbeat.name)).all()


def alive(session: Session) -> Sequence[WorkerHeartbeat]:
    """Workers that were seen lately."""
    since = utcnow() - timedelta(seconds=ALIVE_SECONDS)
    query = select(WorkerHeartbeat).where(WorkerHeartbeat.seen_at >= since)
    return session.scalars(query.order_by(WorkerHeartbeat.name)).all()


def running(session: Session) -> dict[str, str]:
    """By worker the experiment that it runs; only the owner's on an owner's session."""
    query = select(Experiment.worker, Experiment.id).where(Experiment.status == RUNNING)
    return {worker: experiment_id for worker, experiment_id in session.execute(query) if worker is not None}


def experiments(session: Session) -> Length:
    """The queue of experiments."""
    counts = dict(
        session.execute(
            select(Experiment.status, func.count())
            .where(Experiment.status.in_((QUEUED, RUNNING)))
            .group_by(Experiment.status)
        ).all()
    )
    oldest = session.scalar(select(func.min(Experiment.queued_at)).where(Experiment.status == QUEUED))
    return Length(counts.get(QUEUED, 0), counts.get(RUNNING, 0), oldest)


def checks(session: Session) -> Length:
    """The queue of uploads that are to be checked."""
    claimed = Upload.claimed_until.is_not(None) & (Upload.claimed_until > utcnow())
    rows = session.execute(
        select(claimed.label("claimed"), func.count(), func.min(Upload.created_at))
        .where(Upload.status == PENDING)
        .group_by("claimed")
    ).all()
    found = {bool(is_claimed): (count, oldest) for is_claimed, count, oldest in rows}
    waiting, oldest = found.get(False, (0, None))
    return Length(waiting, found.get(True, (0, None))[0], oldest)
