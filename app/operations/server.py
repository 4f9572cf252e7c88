"""The API process under `bdlab up`: uvicorn on an inherited listening socket.

The supervisor keeps the socket open, so clients wait while the API restarts instead of being refused.
"""

import asyncio
import gc
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http import auto

SHUTDOWN_SECONDS = 3
HEADER_SECONDS = 10.0
"""How long the headers of a request may take to arrive."""
_Protocol: Any = auto.AutoHTTPProtocol


class TimedProtocol(_Protocol):  # type: ignore[misc]  # uvicorn chooses its base when it is imported
    """Closes connections whose next request does not arrive in time; uvicorn limits only the pause between two.

    A client that sends a byte now and then would otherwise hold a connection forever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._limit_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_headers()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._cancel_timer()

    def _limit_headers(self) -> None:
        """Start the timer where a request has begun and its headers are incomplete; stop it once they are complete."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def main() -> None:
    """Serve until SIGTERM on the inherited file descriptor in ``sys.argv``; open streams then get seconds to end."""
    descriptor = int(sys.argv[1])
    gc.disable()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        http=TimedProtocol,
        access_log=False,
        proxy_headers=False,  # uvicorn would believe every process of this machine; see BDLAB_PROXIES
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    config.load()
    gc.freeze()  # what was imported is never freed, so the collector need not traverse it
    gc.enable()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
