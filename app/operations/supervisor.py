"""`bdlab up`: supervises broker, API, relay and workers as child processes.

A child that dies is restarted. Ctrl-C stops all of them in order, workers first: a running experiment is requeued and
resumes from its checkpoint after the next start. If this process is killed, its children die with it (on Linux).
"""

import fcntl
import http.client
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.security import is_loopback
from app.operations import embedded_broker, schema
from app.operations.child_process import Child
from app.settings import Settings
from app.team.keys.repository import any_key

START_SECONDS = 120.0
WORKER_STOP_SECONDS, STOP_SECONDS = 20.0, 8.0
MAX_START_DEATHS = 3
LISTEN_BACKLOG = 2048
CACHES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
WORKER = ("-m", "worker")


class StartError(Exception):
    """The service cannot start; the message is for the user."""


def up(settings: Settings, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Run the whole service until SIGINT, SIGTERM or SIGHUP; port 0 takes a free one. Returns the exit code."""
    stop = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request_stop)
    try:
        with ExitStack() as stack:
            _check_torch()
            stack.enter_context(_lock_home(settings.home_dir))
            _upgrade_schema(settings)
            _check_keys(settings, host)
            listener = stack.enter_context(_open_listener(host, port))
            url = _url_of(listener)
            echo(f"starting under {settings.home_dir}")
            processes = ProcessTree(settings, listener.fileno())
            stack.callback(processes.stop)
            processes.start(stop)
            _wait_until_ready(processes, listener, stop)
            if not stop.is_set():
                stack.enter_context(_publish_address(settings.home_dir / "address", url))
                echo(f"ready at {url}: the dashboard; the API page is {url}/docs (Ctrl-C stops)")
            while not stop.wait(0.1):
                processes.look_after_children()
            echo("stopping")
    except StartError as error:
        print(f"bdlab up: {error}", file=sys.stderr)
        return 1
    echo("stopped")
    return 0


def echo(line: str) -> None:
    """Print a line to the console."""
    print(f"bdlab: {line}", flush=True)


class ProcessTree:
    """The child processes of the service."""

    def __init__(self, settings: Settings, listener: int) -> None:
        self.settings = settings
        self.logs = settings.home_dir / "logs"
        self.logs.mkdir(exist_ok=True)
        self.environment = child_environment(settings)
        self.broker: Child | None = None
        if not settings.broker_url:
            self.broker = self._child("broker", embedded_broker.server_command(settings))
        python = sys.executable
        training, interactive, checking = (
            [python, *WORKER, kind] for kind in ("training", "interactive", "checks")
        )
        self.workers = [
            self._child("worker", training, settings.worker_niceness),
            self._child("interactive", interactive, settings.worker_niceness // 2),
            self._child("checks", checking, settings.worker_niceness),
        ]
        self.relay = self._child("relay", [python, "-m", "app.operations.relay"])
        self.api = self._child(
            "api", [python, "-m", "app.operations.server", str(listener)], descriptors=(listener,)
        )

    @property
    def children(self) -> list[Child]:
        return [*([self.broker] if self.broker else []), self.api, self.relay, *self.workers]

    def start(self, stop: threading.Event) -> None:
        """Start everything, the broker first. Raises StartError."""
        if self.broker is not None:
            try:
                embedded_broker.create_folders(self.settings)
            except OSError as error:
                raise StartError(str(error)) from error
            self.broker.start()
            self.wait_for(lambda: embedded_broker.is_ready(self.settings), "the broker", stop)
        for child in self.children:
            if child.process is None:
                child.start()

    def look_after_children(self) -> None:
        for child in self.children:
            child.look_after(echo)

    def wait_for(self, ready: Callable[[], bool], what: str, stop: threading.Event) -> None:
        """Wait until ``ready()`` or ``stop``. Raises StartError if a child keeps dying, or at the timeout."""
        deadline = time.monotonic() + START_SECONDS
        while not stop.is_set() and not ready():
            for child in self.children:
                if child.process is not None or child.deaths:
                    child.look_after(echo)
                if child.deaths >= MAX_START_DEATHS:
                    raise StartError(f"{child.name} cannot start; the end of {child.log}:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{what} is not ready after {START_SECONDS:.0f} s; see {self.logs}")
            stop.wait(0.1)

    def stop(self) -> None:
        """Stop the workers, then relay and API, then the broker."""
        for group, seconds in (
            (self.workers, WORKER_STOP_SECONDS),
            ([self.relay, self.api], STOP_SECONDS),
            ([self.broker] if self.broker else [], STOP_SECONDS),
        ):
            for child in group:
                child.terminate()
            deadline = time.monotonic() + seconds
            for child in group:
                child.wait(deadline)
        if self.broker is not None:
            embedded_broker.remove_socket(self.settings)

    def _child(
        self, name: str, command: list[str], niceness: int = 0, descriptors: tuple[int, ...] = ()
    ) -> Child:
        return Child(name, command, self.logs / f"{name}.log", self.environment, niceness, descriptors)


def child_environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give a child the same settings, and put caches under home."""
    values = settings.model_dump() | {
        "home": settings.home_dir,
        "data_dir": settings.datasets,
        "secret": settings.secret.get_secret_value(),  # str() would mask it
        "key_pepper": settings.key_pepper.get_secret_value(),
        "retention": settings.retention and settings.retention.model_dump_json(),
    }
    ours = {f"BDLAB_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    caches = {name: str(settings.home_dir / "cache" / name.lower()) for name in CACHES}
    return caches | os.environ | ours | {"PYTHONUNBUFFERED": "1"}


def _check_keys(settings: Settings, host: str) -> None:
    """Without API keys, print a warning; raise StartError if other machines could connect."""
    database = Database(settings.database)
    try:
        with database.reading() as session:
            if any_key(session):
                return
    finally:
        database.close()
    if not is_loopback(host):
        raise StartError(
            f"host {host!r} accepts other machines, but there is no API key; create one with `bdlab keys create`, "
            "or listen on 127.0.0.1"
        )
    echo("there is no API key: every local request is accepted; `bdlab keys create` restricts access")


def _check_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise StartError("torch is not installed; `bdlab up` also runs the workers, which need it")


@contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises StartError if another service holds it."""
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)  # it may be older than the command's umask
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise StartError(f"another service runs under {home} (process {lock.read().strip()})") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _open_listener(host: str, port: int) -> socket.socket:
    """The API's listening socket, which stays open while the API restarts."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {host}, port {port}: {error.strerror}; see --port") from error
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _upgrade_schema(settings: Settings) -> None:
    try:
        schema.upgrade(settings.database)
    except SQLAlchemyError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise StartError(f"the database cannot be opened or upgraded: {reason}") from error


def _wait_until_ready(processes: ProcessTree, listener: socket.socket, stop: threading.Event) -> None:
    host, port = listener.getsockname()[:2]

    def ready() -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    processes.wait_for(ready, "the service", stop)


@contextmanager
def _publish_address(path: Path, url: str) -> Iterator[None]:
    """Write the file in which the command line finds the service's address. A reader never sees an empty one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(f"{url}\n")
    partial.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
