"""Queries about workers. Each function is given an open session; none commits."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.specs.placement import KINDS, choose_queue
from app.specs.stages import LAB_VERSION
from app.tables.experiments import DRAINING, QUEUED, RUNNING, Experiment, WorkerHeartbeat
from app.tables.uploads import PENDING, Upload

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


def kinds(session: Session) -> set[str]:
    """Of the queues of experiments, those that some live worker serves which can run what is submitted here."""
    found = {
        queue
        for row in alive(session)
        if row.state != DRAINING and row.lab_version >= LAB_VERSION
        for queue in row.queue.split(",")
    }
    return found & set(KINDS)


def running(session: Session) -> dict[str, str]:
    """By worker the experiment that it runs; only the owner's on an owner's session."""
    query = select(Experiment.worker, Experiment.id).where(Experiment.status == RUNNING)
    return {worker: experiment_id for worker, experiment_id in session.execute(query) if worker is not None}


def experiments(session: Session, *, gpu_on_demand: bool) -> dict[str, Length]:
    """By queue, the experiments that wait for its workers, and how many these run."""
    live = kinds(session)
    waiting = session.execute(
        select(Experiment.placement, func.count(), func.min(Experiment.queued_at))
        .where(Experiment.status == QUEUED)
        .group_by(Experiment.placement)
    ).all()
    found = dict.fromkeys(KINDS, Length(0, 0, None))
    for placement, count, oldest in waiting:
        queue = choose_queue(placement, live, gpu_on_demand=gpu_on_demand)
        before = found[queue]
        first = min(oldest, before.oldest) if before.oldest is not None else oldest
        found[queue] = Length(before.waiting + count, before.running, first)
    running = session.execute(
        select(WorkerHeartbeat.queue, func.count())
        .join(Experiment, Experiment.worker == WorkerHeartbeat.name)
        .where(Experiment.status == RUNNING)
        .group_by(WorkerHeartbeat.queue)
    )
    for queue, count in running:
        if queue in found:
            found[queue] = found[queue]._replace(running=count)
    return found


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
