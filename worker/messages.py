"""The transport of the workers' messages: one that cannot be read is logged and dropped, and does not end the worker.

Messages are only hints, so nothing is lost: the relay publishes again what waits.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

log = logging.getLogger(__name__)
SHOWN = 200


class Channel(redis.Channel):
    """Reads messages, of which some are not JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (Empty, *self.connection_errors):
            raise
        except Exception as error:
            _log_dropped(error)
            return True


class Transport(redis.Transport):
    """Delivers messages, of which some are no tasks."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        except Exception as error:
            # kombu counts KeyError as a lost connection, but here it means that the message lacks a field.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
            _log_dropped(error)
            self._forget(message)

    def _forget(self, message: Any) -> None:
        """Acknowledge the message, so that it does not come again."""
        properties = message.get("properties") if isinstance(message, dict) else None
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str):
            for channel in self.channels:
                channel.qos.ack(tag)


def install() -> None:
    """Make this the transport of every connection of this process to a Redis-protocol server."""
    for scheme, transport in TRANSPORT_ALIASES.items():
        if transport == "kombu.transport.redis:Transport":
            TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"


def _log_dropped(error: Exception) -> None:
    log.error(
        "a message is not one of this service and was dropped: %s: %s",
        type(error).__name__,
        str(error)[:SHOWN],
    )
