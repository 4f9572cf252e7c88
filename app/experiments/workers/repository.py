"""Queries about workers and queues. Each function gets an open session; none commits."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import from_now
from app.specs.placement import KINDS, choose_queue
from app.specs.stages import LAB_VERSION
from app.tables.experiments import DRAINING, QUEUED, RUNNING, Experiment, WorkerHeartbeat
from app.tables.uploads import PENDING, Upload

ALIVE_SECONDS = 30.0
"""A worker whose last heartbeat is older counts as dead."""


class Length(NamedTuple):
    """The length of a queue. ``oldest`` is when its oldest entry was queued; None is what is not counted."""

    waiting: int
    running: int | None
    oldest: datetime | None


def all_workers(session: Session) -> Sequence[WorkerHeartbeat]:
    """Every worker that is registered, dead ones too."""
    return session.scalars(select(WorkerHeartbeat).order_by(WorkerHeartbeat.name)).all()


def alive(session: Session) -> Sequence[WorkerHeartbeat]:
    """Workers with a recent heartbeat."""
    query = select(WorkerHeartbeat).where(WorkerHeartbeat.seen_at >= from_now(-ALIVE_SECONDS))
    return session.scalars(query.order_by(WorkerHeartbeat.name)).all()


def live_queues(session: Session) -> set[str]:
    """The queues of experiments that a live worker serves which can run what this process submits."""
    queues = {
        queue
        for row in alive(session)
        if row.state != DRAINING and row.lab_version >= LAB_VERSION
        for queue in row.queue.split(",")
    }
    return queues & set(KINDS)


def running(session: Session) -> dict[str, str]:
    """The experiment that each worker runs; on an owner's session only the owner's experiments."""
    query = select(Experiment.worker, Experiment.id).where(Experiment.status == RUNNING)
    return {worker: experiment_id for worker, experiment_id in session.execute(query) if worker is not None}


def experiment_queues(session: Session, *, gpu_on_demand: bool) -> dict[str, Length]:
    """For each queue the experiments that wait for its workers, and the number that these run."""
    live = live_queues(session)
    waiting = session.execute(
        select(Experiment.placement, func.count(), func.min(Experiment.queued_at))
        .where(Experiment.status == QUEUED)
        .group_by(Experiment.placement)
    ).all()
    lengths = dict.fromkeys(KINDS, Length(0, 0, None))
    for placement, count, oldest in waiting:
        queue = choose_queue(placement, live, gpu_on_demand=gpu_on_demand)
        length = lengths[queue]
        first = min(oldest, length.oldest) if length.oldest is not None else oldest
        lengths[queue] = Length(length.waiting + count, length.running, first)
    running = session.execute(
        select(WorkerHeartbeat.queue, func.count())
        .join(Experiment, Experiment.worker == WorkerHeartbeat.name)
        .where(Experiment.status == RUNNING)
        .group_by(WorkerHeartbeat.queue)
    )
    for queue, count in running:
        if queue in lengths:
            lengths[queue] = lengths[queue]._replace(running=count)
    return lengths


def check_queue(session: Session) -> Length:
    """The queue of uploads that wait for their check."""
    claimed = Upload.claimed_until.is_not(None) & (Upload.claimed_until > from_now())
    rows = session.execute(
        select(claimed.label("claimed"), func.count(), func.min(Upload.created_at))
        .where(Upload.status == PENDING)
        .group_by("claimed")
    ).all()
    counts = {bool(is_claimed): (count, oldest) for is_claimed, count, oldest in rows}
    waiting, oldest = counts.get(False, (0, None))
    return Length(waiting, counts.get(True, (0, None))[0], oldest)
