"""One request to a receiver: to a checked address, over TLS, in bounded time, without redirects.

The host's name is looked up once, every address that it has must be allowed, and the connection is made to one of
those very addresses. So a name that leads elsewhere a moment later (DNS rebinding) gains nothing. The certificate is
still checked against the name.
"""

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpcore2
import httpx2

from app.webhooks.addresses import refusal, resolve

EXCERPT_BYTES = 1000
"""Of an answer; the rest is not read."""
USUAL = {
    "Content-Type": "application/json",
    "User-Agent": f"backdoor-lab/{version('backdoor-lab')}",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True)
class Outcome:
    """What came of a request: ``status`` of the answer, or the ``error`` that kept it away."""

    seconds: float
    status: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after: float | None = None

    @property
    def good(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return f"answered {self.status}" if self.status is not None else str(self.error)


class RefusedAddressError(httpcore2.ConnectError):
    """The host leads where webhooks may not go."""


class Post:
    """Sends requests, each on a connection of its own."""

    def __init__(self, timeout: float, *, private: bool) -> None:
        """``timeout``: seconds for all of it, but the look-up of the name, which the system bounds. ``private``: see
        `addresses.refusal`. Certificates are those of the system, or of SSL_CERT_FILE."""
        self._timeout, self._private = timeout, private
        self._context = httpx2.create_ssl_context()

    def __call__(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Never raises for what the receiver, or the network, does."""
        began = time.monotonic()
        try:
            target, host = _target(url)
            sent = list(({"Host": host} | USUAL | headers).items())
            backend = _Backend(self._timeout, private=self._private)
            with (
                httpcore2.ConnectionPool(ssl_context=self._context, network_backend=backend) as pool,
                pool.stream("POST", target, headers=sent, content=body) as answer,
            ):
                excerpt = _start(answer.iter_stream())
                return Outcome(
                    time.monotonic() - began, answer.status, None, excerpt, _retry_after(answer.headers)
                )
        except (httpcore2.TimeoutException, TimeoutError):
            error = f"no answer within {self._timeout:g} s"
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpx2.InvalidURL,
            OSError,
            ValueError,
        ) as fault:
            error = str(fault) or type(fault).__name__
        return Outcome(time.monotonic() - began, error=_storable(error)[:EXCERPT_BYTES])


class _Backend(httpcore2.NetworkBackend):
    """Connects to checked addresses, and gives one request one deadline."""

    def __init__(self, timeout: float, *, private: bool) -> None:
        self._timeout, self._private = timeout, private

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved") from error
        for address in addresses:
            if why := refusal(address, private=self._private):
                raise RefusedAddressError(f"{host} is {why}; webhooks go to public addresses alone")
        deadline = time.monotonic() + self._timeout
        fault: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                plain = httpcore2.SyncBackend().connect_tcp(address, port, _left(deadline))
            except httpcore2.ConnectError as error:
                fault = error
            else:
                return _Timed(plain, deadline)
        raise fault


class _Timed(httpcore2.NetworkStream):
    """A stream that ends at a deadline, however slowly the other side goes on."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Timed(
            self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _target(url: str) -> tuple[httpcore2.URL, str]:
    """The URL with its host in ASCII, and the header Host. Raises InvalidURL."""
    parsed = httpx2.URL(url)
    target = httpcore2.URL(
        scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )
    return target, parsed.netloc.decode("ascii")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the time is over")
    return left


def _start(pieces: Iterable[bytes]) -> str:
    read = b""
    for piece in pieces:
        read += piece
        if len(read) >= EXCERPT_BYTES:
            break
    return _storable(read[:EXCERPT_BYTES].decode(errors="replace"))


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds that the receiver asks for; it may also name a date, which nobody does."""
    value = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return float(value) if value.isdigit() and len(value) < 7 else None


def _storable(text: str) -> str:
    """``text`` without what no database keeps."""
    return text.replace("\0", "?").encode(errors="replace").decode()
