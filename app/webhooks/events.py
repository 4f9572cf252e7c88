"""What webhooks are told."""

from typing import Literal, get_args

Event = Literal[
    "experiment.started",
    "experiment.succeeded",
    "experiment.failed",
    "experiment.canceled",
    "sweep.finished",
    "study.finished",
    "model.ready",
    "model.refused",
    "dataset.ready",
    "dataset.refused",
]
EVENTS: tuple[Event, ...] = get_args(Event)
USUAL: tuple[Event, ...] = tuple(event for event in EVENTS if event != "experiment.started")
"""Everything that tells of an end."""
PING = "webhook.ping"
"""What the test route sends, whatever the webhook's events are."""
