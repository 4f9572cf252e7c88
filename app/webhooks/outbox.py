"""Writes deliveries, in the transaction of the event itself: either both are stored or neither is.

Code that changes an experiment, a sweep or an upload calls these functions. Without webhooks they cost one query.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import from_now, utcnow
from app.specs.status import TERMINAL
from app.tables.experiments import Experiment
from app.tables.sweeps import STUDY, SWEEP, SweepExperiment
from app.tables.uploads import Upload
from app.tables.webhooks import Delivery, SweepEnding, Webhook

SUBSCRIPTIONS = "webhooks"
"""Key of a session's ``info``: the subscriptions that were already queried, by owner."""


def emit(session: Session, owner_id: str, event: str, data: Callable[[], dict[str, Any]]) -> None:
    """Write a delivery for each of the owner's webhooks that subscribes to the event.

    ``data`` is called only if there is such a webhook.
    """
    ids = [webhook_id for webhook_id, events in _subscriptions(session, owner_id).items() if event in events]
    if ids:
        body = message(event, data())
        session.add_all(delivery(webhook_id, event, body) for webhook_id in ids)


def message(event: str, data: dict[str, Any]) -> str:
    """The body of a delivery."""
    return json.dumps({"type": event, "timestamp": utcnow().isoformat(), "data": data})


def delivery(webhook_id: str, event: str, body: str) -> Delivery:
    """A delivery that is due now."""
    return Delivery(webhook_id=webhook_id, type=event, body=body, created_at=utcnow(), due_at=from_now())


def emit_experiment_event(session: Session, experiment: Experiment, event: str, reason: str | None) -> None:
    """``event`` is ``started`` or a terminal status. The caller holds the lock on the experiment's row."""
    emit(session, experiment.owner_id, f"experiment.{event}", lambda: _experiment(experiment, reason))
    if event in TERMINAL:
        _check_sweeps_of(session, experiment.owner_id, [experiment.id])


def emit_upload_event(session: Session, upload: Upload) -> None:
    """The check of a model or a dataset has ended."""
    emit(session, upload.owner_id, f"{upload.kind}.{upload.status}", lambda: _upload(upload))


def check_sweeps_before_deletion(session: Session, experiment_ids: Sequence[str]) -> None:
    """Request a check of the sweeps of experiments that will be deleted, since these may have been the last to end."""
    query = select(Experiment.owner_id, Experiment.id)
    by_owner: dict[str, list[str]] = {}
    for owner_id, experiment_id in session.execute(
        query.where(Experiment.id.in_(experiment_ids), Experiment.status.not_in(TERMINAL))
    ):
        by_owner.setdefault(owner_id, []).append(experiment_id)
    for owner_id, ids in by_owner.items():
        _check_sweeps_of(session, owner_id, ids)


def check_sweeps(session: Session, sweep_ids: Sequence[str]) -> None:
    """Request that the sender checks whether these sweeps or studies have finished."""
    session.add_all(SweepEnding(sweep_id=sweep_id) for sweep_id in sweep_ids)


def wants_sweep_events(session: Session, owner_id: str) -> bool:
    """Whether a webhook of the owner subscribes to the end of sweeps or studies."""
    events = {f"{kind}.finished" for kind in (SWEEP, STUDY)}
    return any(events & set(subscribed) for subscribed in _subscriptions(session, owner_id).values())


def _subscriptions(session: Session, owner_id: str) -> dict[str, list[str]]:
    """The events of each enabled webhook, by its id."""
    cache: dict[str, dict[str, list[str]]] = session.info.setdefault(SUBSCRIPTIONS, {})
    if owner_id not in cache:
        query = select(Webhook.id, Webhook.events)
        query = query.where(Webhook.owner_id == owner_id, Webhook.disabled_at.is_(None))
        cache[owner_id] = dict(session.execute(query).all())
    return cache[owner_id]


def _check_sweeps_of(session: Session, owner_id: str, experiment_ids: Sequence[str]) -> None:
    if wants_sweep_events(session, owner_id):
        query = select(SweepExperiment.sweep_id).where(SweepExperiment.experiment_id.in_(experiment_ids))
        check_sweeps(session, session.scalars(query.distinct()).all())


def _experiment(experiment: Experiment, reason: str | None) -> dict[str, Any]:
    path = f"/v1/experiments/{experiment.id}"
    times = ("created_at", "started_at", "finished_at")
    return {
        "id": experiment.id,
        "name": experiment.name,
        "status": experiment.status,
        "attempt": experiment.attempt,
        "reason": reason,
        "tags": experiment.spec["tags"],
        **{name: at.isoformat() if (at := getattr(experiment, name)) else None for name in times},
        "links": {"self": path, "results": f"{path}/results"},
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
