"""`bdlab up`: broker, API, relay and workers as one tree of processes.

Each child is started again when it dies. Ctrl-C stops all in order, workers first: a running experiment is
handed back and resumes from its checkpoint at the next start. If this process is killed, its children die
with it (on Linux).
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
from app.operations import embedded_broker, schema
from app.operations.child_process import Child
from app.settings import Settings
from app.team.addresses import is_loopback
from app.team.keys.repository import any_key

START_SECONDS = 120.0
WORKER_STOP_SECONDS, STOP_SECONDS = 20.0, 8.0
HOPELESS_DEATHS = 3
LISTEN_BACKLOG = 2048
CACHES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
WORKER = ("-m", "worker")


class StartError(Exception):
    """The service cannot start; the message is for the user."""


def up(settings: Settings, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Run the whole service until SIGINT or SIGTERM; port 0 takes a free one. Returns the exit code."""
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    try:
        with ExitStack() as stack:
            _check_worker()
            stack.enter_context(_only_one(settings.home_dir))
            _upgrade(settings)
            _check_keys(settings, host)
            listener = stack.enter_context(_listen(host, port))
            url = _url(listener)
            say(f"starting under {settings.home_dir}")
            tree = Tree(settings, listener.fileno())
            stack.callback(tree.stop)
            tree.start(stop)
            _wait_until_ready(tree, listener, stop)
            if not stop.is_set():
                stack.enter_context(_address_file(settings.home_dir / "address", url))
                say(f"ready at {url}: the dashboard; the API page is {url}/docs (Ctrl-C stops)")
            while not stop.wait(0.1):
                tree.keep()
            say("stopping")
    except StartError as error:
        print(f"bdlab up: {error}", file=sys.stderr)
        return 1
    say("stopped")
    return 0


def say(line: str) -> None:
    """Tell whoever sits at the console."""
    print(f"bdlab: {line}", flush=True)


class Tree:
    """The children, in the order in which they start."""

    def __init__(self, settings: Settings, listener: int) -> None:
        self.settings = settings
        self.logs = settings.home_dir / "logs"
        self.logs.mkdir(exist_ok=True)
        self.environment = _environment(settings)
        self.broker: Child | None = None
        if not settings.broker_url:
            self.broker = self._child("broker", embedded_broker.command(settings))
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
                embedded_broker.prepare(self.settings)
            except OSError as error:
                raise StartError(str(error)) from error
            self.broker.start()
            self.wait_for(lambda: embedded_broker.answers(self.settings), "the broker", stop)
        for child in self.children:
            if child.process is None:
                child.start()

    def keep(self) -> None:
        for child in self.children:
            child.keep(say)

    def wait_for(self, ready: Callable[[], bool], what: str, stop: threading.Event) -> None:
        """Wait until ``ready()``, or ``stop``. Raises StartError if a child keeps dying, or in the end."""
        deadline = time.monotonic() + START_SECONDS
        while not stop.is_set() and not ready():
            for child in self.children:
                if child.process is not None or child.deaths:
                    child.keep(say)
                if child.deaths >= HOPELESS_DEATHS:
                    raise StartError(f"{child.name} cannot start; the end of {child.log}:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{what} is not ready after {START_SECONDS:.0f} s; see {self.logs}")
            stop.wait(0.1)

    def stop(self) -> None:
        """Stop everything in order: who works, then who hands out work, the broker last."""
        for group, patience in (
            (self.workers, WORKER_STOP_SECONDS),
            ([self.relay, self.api], STOP_SECONDS),
            ([self.broker] if self.broker else [], STOP_SECONDS),
        ):
            for child in group:
                child.ask_to_stop()
            until = time.monotonic() + patience
            for child in group:
                child.wait(until)
        if self.broker is not None:
            embedded_broker.clean_up(self.settings)

    def _child(
        self, name: str, command: list[str], niceness: int = 0, descriptors: tuple[int, ...] = ()
    ) -> Child:
        return Child(name, command, self.logs / f"{name}.log", self.environment, niceness, descriptors)


def _environment(settings: Settings) -> dict[str, str]:
    """The environment that gives a child the same settings, wherever they came from, and caches under home."""
    values = settings.model_dump() | {
        "home": settings.home_dir,
        "data_dir": settings.datasets,
        "secret": settings.secret.get_secret_value(),  # as text it is a row of stars
        "key_pepper": settings.key_pepper.get_secret_value(),
        "retention": settings.retention and settings.retention.model_dump_json(),
    }
    ours = {f"BDLAB_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    caches = {name: str(settings.home_dir / "cache" / name.lower()) for name in CACHES}
    return caches | os.environ | ours | {"PYTHONUNBUFFERED": "1"}


def _check_keys(settings: Settings, host: str) -> None:
    """Without keys: say that the service is open, and refuse to listen to other machines. Raises StartError."""
    database = Database(settings.database)
    try:
        with database.reading() as session:
            if any_key(session):
                return
    finally:
        database.close()
    if not is_loopback(host):
        raise StartError(
            f"host {host!r} lets other machines in, and there is no API key yet; make one with `bdlab keys create`, "
            "or listen on 127.0.0.1"
        )
    say(
        "there is no API key: whoever uses this machine may do everything; `bdlab keys create` closes the service"
    )


def _check_worker() -> None:
    if importlib.util.find_spec("torch") is None:
        raise StartError("torch is not installed here; `bdlab up` also runs the workers, which need it")


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises StartError if another service has it."""
    home.mkdir(parents=True, exist_ok=True)
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


def _listen(host: str, port: int) -> socket.socket:
    """The API's listening socket. It stays open while the API restarts."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {host}, port {port}: {error.strerror}; see --port") from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _upgrade(settings: Settings) -> None:
    try:
        schema.upgrade(settings.database)
    except SQLAlchemyError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise StartError(f"the database cannot be opened or upgraded: {reason}") from error


def _wait_until_ready(tree: Tree, listener: socket.socket, stop: threading.Event) -> None:
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

    tree.wait_for(ready, "the service", stop)


@contextmanager
def _address_file(path: Path, url: str) -> Iterator[None]:
    """The file from which the command line knows where the service is."""
    path.write_text(f"{url}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
