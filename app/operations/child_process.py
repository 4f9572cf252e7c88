"""A child process that is kept alive, dies with its parent, and takes its own children along."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.3, 30.0
STEADY_SECONDS = 60.0
LARGEST_LOG_BYTES = 20_000_000
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Child:
    """A command that runs until it is stopped. It leads a session of its own, so the terminal's Ctrl-C reaches
    only the parent, which stops its children in order."""

    name: str
    command: Sequence[str]
    log: Path
    environment: dict[str, str]
    niceness: int = 0
    descriptors: tuple[int, ...] = ()
    deaths: int = 0
    process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0
    _start_at: float = 0.0
    _pause: float = field(default=FIRST_PAUSE_SECONDS)

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LARGEST_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=self.descriptors,
                start_new_session=True,
                preexec_fn=before_exec(self.niceness, os.getpid()),  # noqa: PLW1509  # the supervisor has one thread
            )
        self._started_at = time.monotonic()

    def keep(self, say: Callable[[str], None]) -> None:
        """Start it again if it died: at once the first time, later after growing pauses."""
        if self.process is None:
            if time.monotonic() >= self._start_at:
                self.start()
        elif self._has_died(self.process):
            steady = time.monotonic() - self._started_at > STEADY_SECONDS
            self._pause = FIRST_PAUSE_SECONDS if steady else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            say(
                f"{self.name} ended ({self.reap()}); starting it again in {self._pause:.1f} s; see {self.log}"
            )
            self.deaths += 1
            self._start_at = time.monotonic() + self._pause

    def ask_to_stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self, until: float) -> None:
        """Wait for its end until the monotonic time ``until``, then kill it and whatever it started."""
        while self.process is not None:
            if time.monotonic() > until or self._has_died(self.process):
                self.reap()
            else:
                time.sleep(0.02)

    def reap(self) -> str:
        """Kill what is left of its process group; returns how the child itself ended."""
        process, self.process = self.process, None
        if process is None:
            return "never started"
        # The child is not yet waited for, so its number cannot belong to anybody else.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def tail(self, lines: int = 8) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    @staticmethod
    def _has_died(process: subprocess.Popen[bytes]) -> bool:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def die_with(parent: int) -> None:
    """Have this process killed when its ``parent`` dies; end it if that has happened. Only Linux can."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def before_exec(niceness: int, parent: int) -> Callable[[], None]:
    """What a new process does before it becomes its command: be killed with ``parent``, and be nice."""

    def prepare() -> None:
        die_with(parent)
        os.nice(niceness)
        # Linux schedules whole sessions against each other by the session's own niceness, not by its processes'.
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
            autogroup.write(str(niceness))

    return prepare
