"""The API process: uvicorn on an address, or on a listening socket that is inherited.

`bdlab up` keeps its socket open, so clients wait while the API restarts instead of being refused.
"""

import argparse
import asyncio
import gc
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

SHUTDOWN_SECONDS = 3
HEADER_SECONDS = 10.0
"""How long the headers of a request may take to arrive."""


class TimedProtocol(H11Protocol):
    """Closes connections whose next request does not arrive in time; uvicorn limits only the pause between two.

    A client that sends a byte now and then would otherwise hold a connection forever. h11 refuses headers of more than
    64 KiB; httptools, which uvicorn prefers where it is installed, keeps headers without end.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
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
    """Serve until SIGTERM; open streams then get seconds to end."""
    parser = argparse.ArgumentParser(prog="python -m app.operations.server", description="Serve the API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--fd", type=int, help="an inherited listening socket, in place of host and port")
    options = parser.parse_args()
    gc.disable()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        host=options.host,
        port=options.port,
        http=TimedProtocol,
        access_log=False,
        proxy_headers=False,  # uvicorn would believe every process of this machine; see BDLAB_PROXIES
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    config.load()
    gc.freeze()  # what was imported is never freed, so the collector need not traverse it
    gc.enable()
    sockets = None if options.fd is None else [socket.socket(fileno=options.fd)]
    uvicorn.Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main()
