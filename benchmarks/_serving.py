"""What benchmarks of running servers share: a client with little overhead of its own, and free ports."""

import json
import socket
from typing import Any

NOBODY_ASKS = 120.0


class Connection:
    """HTTP/1.1 on one persistent connection, with minimal overhead: clients and servers share the machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            f"Content-Length: {len(content)}",
        ]
        lines += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
        request = "\r\n".join([*lines, "", ""]).encode() + content
        try:
            status, answer = self._exchange(request)
        except ConnectionError:  # the server closed an idle connection
            self.close()
            status, answer = self._exchange(request)
        assert status < 400, f"{method} {path}: {status} {answer[:500]!r}"
        return answer

    def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=NOBODY_ASKS)
        self._socket.sendall(request)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, answer = got.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        length = next(lengths, 0)  # a 304 has none
        parts, size = [answer], len(answer)
        while size < length:
            parts.append(self._more())
            size += len(parts[-1])
        return int(lines[0].split()[1]), b"".join(parts)

    def _more(self) -> bytes:
        assert self._socket is not None
        piece = self._socket.recv(1 << 20)
        if not piece:
            raise ConnectionResetError
        return piece

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
