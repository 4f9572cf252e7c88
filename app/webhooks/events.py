"""The events that webhooks can subscribe to."""

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
DEFAULT_EVENTS: tuple[Event, ...] = tuple(event for event in EVENTS if event != "experiment.started")
"""All events that something has ended."""
PING = "webhook.ping"
"""The event of the test route, which every webhook receives."""
