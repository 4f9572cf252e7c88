"""One request to a receiver: to an allowed address, over TLS, with a deadline, without redirects.

The host name is resolved once, all its addresses must be allowed, and the connection is made to one of them. So a name
that resolves to another address a moment later (DNS rebinding) has no effect. The certificate is checked against the
name.
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
"""How much of a response is read."""
FAILURES = (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.InvalidURL, OSError, ValueError)
HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": f"backdoor-lab/{version('backdoor-lab')}",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request: the ``status`` of the response, or the ``error`` if there is none."""

    seconds: float
    status: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after: float | None = None

    @property
    def good(self) -> bool:
        """Whether the receiver accepted it."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return f"answered {self.status}" if self.status is not None else str(self.error)


class Transport:
    """Sends requests, each on its own connection."""

    def __init__(self, timeout: float, *, private: bool) -> None:
        """``timeout`` is in seconds for the whole request, including the look-up of the host.

        ``private``: see `addresses.refusal`. Trusted certificates are those of the system or of SSL_CERT_FILE.
        """
        self._timeout, self._private = timeout, private
        self._context = httpx2.create_ssl_context()

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Errors of the receiver or the network are in the outcome; they are not raised."""
        began = time.monotonic()
        try:
            target, host = _target(url)
            all_headers = list(({"Host": host} | HEADERS | headers).items())
            backend = _Backend(self._timeout, private=self._private)
            with (
                httpcore2.ConnectionPool(ssl_context=self._context, network_backend=backend) as pool,
                pool.stream("POST", target, headers=all_headers, content=body) as response,
            ):
                excerpt = _excerpt(response.iter_stream())
                seconds, retry_after = time.monotonic() - began, _retry_after(response.headers)
                return Outcome(seconds, response.status, None, excerpt, retry_after)
        except (httpcore2.TimeoutException, TimeoutError):
            error = f"no answer within {self._timeout:g} s"
        except FAILURES as failure:
            error = str(failure) or type(failure).__name__
        return Outcome(time.monotonic() - began, error=_storable(error)[:EXCERPT_BYTES])


class _Backend(httpcore2.NetworkBackend):
    """Connects only to allowed addresses, and sets a deadline for the whole request."""

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
        deadline = time.monotonic() + self._timeout
        try:
            addresses = resolve(host, port, self._timeout)
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} cannot be resolved") from error
        for address in addresses:
            if reason := refusal(address, private=self._private):
                raise httpcore2.ConnectError(f"{host} is {reason}; webhooks require a public address")
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, _left(deadline))
            except httpcore2.ConnectError as error:
                failure = error
            else:
                return _StreamWithDeadline(stream, deadline)
        raise failure


class _StreamWithDeadline(httpcore2.NetworkStream):
    """A stream that fails at a deadline, even if the other side keeps sending slowly."""

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
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _StreamWithDeadline(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _target(url: str) -> tuple[httpcore2.URL, str]:
    """The URL with its host in ASCII, and the Host header. Raises InvalidURL."""
    parsed = httpx2.URL(url)
    target = httpcore2.URL(
        scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )
    return target, parsed.netloc.decode("ascii")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return left


def _excerpt(chunks: Iterable[bytes]) -> str:
    read = b""
    for chunk in chunks:
        read += chunk
        if len(read) >= EXCERPT_BYTES:
            break
    return _storable(read[:EXCERPT_BYTES].decode(errors="replace"))


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Retry-After in seconds. A date, which RFC 9110 also permits, is ignored."""
    value = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    return float(value) if value.isdigit() and len(value) < 7 else None


def _storable(text: str) -> str:
    """``text`` without U+0000 and lone surrogates, which a database cannot store."""
    return text.replace("\0", "?").encode(errors="replace").decode()
