"""A child process that is restarted when it dies, and that is killed with its parent and with its own children.

A `Child` executes a command. A `ForkedChild` runs a module in a copy of this process, which shares the memory of what
is imported already and need not import it again.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.3, 30.0
STEADY_SECONDS = 60.0
MAX_LOG_BYTES = 20_000_000
"""A larger log is kept as ``.log.1``, instead of the one before it, and a new one is begun."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process(Protocol):
    """What a child needs of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


@dataclass
class Child:
    """A command that runs until it is stopped.

    It has its own session, so Ctrl-C in the terminal reaches only the parent, which stops its children in order.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str]
    niceness: int = 0
    descriptors: tuple[int, ...] = ()
    prepare: Callable[["Child"], None] = lambda _: None
    """Called before each start."""
    deaths: int = 0
    exit_code: int | None = None
    """Of the last process that ended; negative: the number of a signal."""
    process: Process | None = None
    _started_at: float = 0.0
    _start_at: float = 0.0
    _backoff: float = field(default=MIN_BACKOFF_SECONDS)

    def start(self) -> None:
        """Start the command. Raises OSError if it cannot be started."""
        self.prepare(self)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = self._start_process(output.fileno())
        self._started_at = time.monotonic()

    def _start_process(self, output: int) -> Process:
        return self._execute(self.command, output)

    def _execute(self, command: Sequence[str], output: int) -> Process:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=self.environment,
            pass_fds=self.descriptors,
            start_new_session=True,
            preexec_fn=before_exec(self.niceness, os.getpid()),  # noqa: PLW1509  # the supervisor has one thread
        )

    def look_after(self, echo: Callable[[str], None]) -> None:
        """Bound the size of its log, and restart the child if it died, with exponential backoff."""
        self._rotate_log()
        if self.process is None:
            if time.monotonic() >= self._start_at:
                try:
                    self.start()
                except OSError as error:
                    self._restart_later(echo, f"cannot be started: {error}")
        elif self.has_died():
            if self.age > STEADY_SECONDS:
                self._backoff = MIN_BACKOFF_SECONDS / 2
            self._restart_later(echo, f"ended ({self.reap()})")

    def _restart_later(self, echo: Callable[[str], None], reason: str) -> None:
        self._backoff = min(2 * self._backoff, MAX_BACKOFF_SECONDS)
        echo(f"{self.name} {reason}; restarting it in {self._backoff:.1f} s; see {self.log}")
        self.deaths += 1
        self._start_at = time.monotonic() + self._backoff

    @property
    def age(self) -> float:
        """Seconds since its process started; 0 while there is none."""
        return time.monotonic() - self._started_at if self.process is not None else 0.0

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end until the monotonic time ``deadline``, then kill it and its children."""
        while self.process is not None:
            if time.monotonic() > deadline or self.has_died():
                self.reap()
            else:
                time.sleep(0.02)

    def reap(self) -> str:
        """Kill what is left of its process group. Returns how the child itself ended."""
        process, self.process = self.process, None
        if process is None:
            return "never started"
        # Nobody has waited for the child yet, so its process id cannot have been reused.
        os.killpg(process.pid, signal.SIGKILL)
        code = self.exit_code = process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def tail(self, lines: int) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _rotate_log(self) -> None:
        """Keep what is in a large log as ``.log.1`` and go on with an empty one.

        Copied and truncated, as by logrotate's copytruncate: the child, its own children, and Valkey append to the open
        file, so that none of them needs to know. A line written between the two steps is lost.
        """
        # Without a log, or with a full disk, the child still has to be looked after.
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)

    def has_died(self) -> bool:
        """Whether it has no live process. Leaves a dead one to `reap`."""
        return (
            self.process is None
            or os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        )


class ForkedChild(Child):
    """Calls ``main()`` of a module: ``command`` is the module's name and the arguments in ``sys.argv``.

    Where a process that only forks is not safe (macOS), it executes ``python -m`` with them.
    """

    def _start_process(self, output: int) -> Process:
        if _libc is None:
            return self._execute([sys.executable, "-m", *self.command], output)
        return ForkedProcess(lambda: self._run(output))

    def _run(self, output: int) -> int | None:
        assert _libc is not None
        os.setsid()
        _set_niceness(self.niceness)
        _libc.prctl(PR_SET_NAME, f"bdlab {self.name}".encode(), 0, 0, 0)  # shown by ps and top
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        first = 3
        for descriptor in sorted(self.descriptors):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = list(self.command)
        code: int | None = importlib.import_module(self.command[0]).main()
        return code


class ForkedProcess:
    """A copy of this process, which must have only one thread, that calls ``run`` and exits with its result."""

    def __init__(self, run: Callable[[], int | None]) -> None:
        # A signal that arrives before the copy has its own handlers must wait, or the parent's would ignore it there.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        parent = os.getpid()
        try:
            self.pid = os.fork()
            if self.pid == 0:
                die_with(parent)
                _run_and_exit(run, mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run_and_exit(run: Callable[[], int | None], mask: Iterable[int]) -> NoReturn:
    """The forked process: nothing of the parent's stack is unwound in it."""
    code = 1
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.enable()
        code = run() or 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_with(parent: int) -> None:
    """Have this process killed when its ``parent`` dies, at once if it already has. Only Linux supports this."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def before_exec(niceness: int, parent: int) -> Callable[[], None]:
    """A function for a new process to call before exec: it dies with ``parent``, and gets this niceness."""

    def prepare() -> None:
        die_with(parent)
        _set_niceness(niceness)

    return prepare


def _set_niceness(niceness: int) -> None:
    os.nice(niceness)
    # Linux schedules sessions against each other by their own niceness, not by that of their processes.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
        autogroup.write(str(niceness))
