"""Receivers of webhooks: real HTTPS servers on loopback, under a certificate of a CA of the tests' own."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Got:
    """A request that arrived. Names of headers are in small letters."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers with ``status``, ``answer`` and ``headers`` after ``on_request``, and keeps what it got."""

    url: str = ""
    status: int = 200
    answer: bytes = b"thanks"
    headers: dict[str, str] = field(default_factory=dict)
    on_request: Callable[[Got], None] = lambda _got: None
    got: list[Got] = field(default_factory=list)


class Authority:
    """Signs certificates; ``file`` is what a sender must trust (SSL_CERT_FILE)."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name).configure_cert(context)
        return context


@contextmanager
def receiving(authority: Authority, name: str = "localhost") -> Iterator[Receiver]:
    """A receiver on a free port, with a certificate for ``name``."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got = Got(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            receiver.got.append(got)
            receiver.on_request(got)
            self.send_response(receiver.status)
            for key, value in ({"Content-Length": str(len(receiver.answer))} | receiver.headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(receiver.answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Senders that give up are what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = authority.context(name).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    receiver.url = f"https://{name}:{server.server_address[1]}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drip(seconds: float) -> Callable[[Got], None]:
    """Keeps a sender waiting."""
    return lambda _got: time.sleep(seconds)
