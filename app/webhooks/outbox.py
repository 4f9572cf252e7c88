"""Events become deliveries here, in the transaction in which they happen: both are there, or neither is.

Whoever changes an experiment, a sweep or an upload calls these. An owner without webhooks pays for one query.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.specs.status import TERMINAL
from app.tables.experiments import Experiment
from app.tables.sweeps import STUDY, SWEEP, SweepExperiment
from app.tables.uploads import Upload
from app.tables.webhooks import Delivery, SweepEnding, Webhook

KNOWN = "webhooks"
"""Key of a session's ``info``: the webhooks that it has looked up, by owner."""


class Receiver(NamedTuple):
    """A webhook that is enabled, and what it wants to hear of."""

    id: str
    events: frozenset[str]


def emit(session: Session, owner_id: str, event: str, data: Callable[[], dict[str, Any]]) -> None:
    """Write a delivery for each of the owner's webhooks that wants the event. ``data`` is called if there is one."""
    wanting = [receiver for receiver in _receivers(session, owner_id) if event in receiver.events]
    if wanting:
        body = message(event, data())
        session.add_all(delivery(receiver.id, event, body) for receiver in wanting)


def message(event: str, data: dict[str, Any]) -> str:
    """The body of a delivery."""
    return json.dumps({"type": event, "timestamp": utcnow().isoformat(), "data": data})


def delivery(webhook_id: str, event: str, body: str) -> Delivery:
    """A delivery that is due."""
    now = utcnow()
    return Delivery(webhook_id=webhook_id, type=event, body=body, created_at=now, due_at=now)


def experiment_changed(session: Session, experiment: Experiment, event: str, reason: str | None) -> None:
    """``event`` is ``started`` or the final state; the caller holds the lock on the experiment's row."""
    emit(session, experiment.owner_id, f"experiment.{event}", lambda: _experiment(experiment, reason))
    if event in TERMINAL:
        _look_at_sweeps_of(session, experiment.owner_id, [experiment.id])


def experiments_go(session: Session, ids: Sequence[str]) -> None:
    """These are about to be deleted; a sweep that waited for one may have finished."""
    query = select(Experiment.owner_id, Experiment.id)
    waiting: dict[str, list[str]] = {}
    for owner_id, experiment_id in session.execute(
        query.where(Experiment.id.in_(ids), Experiment.status.not_in(TERMINAL))
    ):
        waiting.setdefault(owner_id, []).append(experiment_id)
    for owner_id, mine in waiting.items():
        _look_at_sweeps_of(session, owner_id, mine)


def look_at(session: Session, sweep_ids: Sequence[str]) -> None:
    """Have the sender look whether these sweeps or studies have finished."""
    session.add_all(SweepEnding(sweep_id=sweep_id) for sweep_id in sweep_ids)


def wants_ends(session: Session, owner_id: str) -> bool:
    """Whether a webhook of the owner wants to hear of sweeps or studies."""
    wanted = {f"{kind}.finished" for kind in (SWEEP, STUDY)}
    return any(receiver.events & wanted for receiver in _receivers(session, owner_id))


def upload_checked(session: Session, upload: Upload) -> None:
    """A check has found a model or a data set ready, or refused it."""
    emit(session, upload.owner_id, f"{upload.kind}.{upload.status}", lambda: _upload(upload))


def _receivers(session: Session, owner_id: str) -> list[Receiver]:
    known: dict[str, list[Receiver]] = session.info.setdefault(KNOWN, {})
    if owner_id not in known:
        query = select(Webhook.id, Webhook.events)
        query = query.where(Webhook.owner_id == owner_id, Webhook.disabled_at.is_(None))
        known[owner_id] = [Receiver(row[0], frozenset(row[1])) for row in session.execute(query)]
    return known[owner_id]


def _look_at_sweeps_of(session: Session, owner_id: str, experiment_ids: Sequence[str]) -> None:
    if wants_ends(session, owner_id):
        query = select(SweepExperiment.sweep_id).where(SweepExperiment.experiment_id.in_(experiment_ids))
        look_at(session, session.scalars(query.distinct()).all())


def _experiment(experiment: Experiment, reason: str | None) -> dict[str, Any]:
    here = f"/v1/experiments/{experiment.id}"
    times = ("created_at", "started_at", "finished_at")
    return {
        "id": experiment.id,
        "name": experiment.name,
        "status": experiment.status,
        "attempt": experiment.attempt,
        "reason": reason,
        "tags": experiment.spec["tags"],
        **{name: at.isoformat() if (at := getattr(experiment, name)) else None for name in times},
        "links": {"self": here, "results": f"{here}/results"},
    }


def _upload(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "name": upload.name,
        "status": upload.status,
        "reason": upload.reason,
        "sha256": upload.sha256,
        "created_at": upload.created_at.isoformat(),
        "checked_at": upload.checked_at.isoformat() if upload.checked_at else None,
        "links": {"self": f"/v1/{upload.kind}s/{upload.id}"},
    }
