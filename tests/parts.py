"""The service as a team runs it: each part is a process, started by its command in docs/deployment.md."""

import os
import re
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM, Signals

import httpx2

from app.operations.child_process import before_exec
from tests.conftest import STOP_SECONDS, Stack
from tests.servers import free_ports

PATTERNS = {
    "migration": "bdlab migrate",
    "api": "app.operations.server",
    "relay": "app.operations.relay",
    "worker": "bdlab worker$",
    "interactive": "bdlab worker interactive$",
    "checks": "bdlab worker checks$",
}
WORKERS = ("worker", "interactive", "checks")
BIN = Path(sys.executable).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "deployment.md"


def commands() -> dict[str, list[str]]:
    """The documented command of each part."""
    documented = re.findall(r"^\|[^|]+\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    matches = {
        name: [line.split() for line in documented if re.search(pattern, line)]
        for name, pattern in PATTERNS.items()
    }
    return {name: command for name, [command] in matches.items()}


class Parts(Stack):
    """The service without `bdlab up`: nothing restarts a part that dies except the test."""

    def __init__(self, home: Path, **environment: str) -> None:
        super().__init__(home, **environment)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.commands = commands()
        (port,) = free_ports(1)
        self.commands["api"] += ["--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.client.base_url = self.url

    def start(self) -> None:
        """Migrate the database, start all parts, and wait until the service is ready."""
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self.run("migration")
        assert self.running.pop("migration").wait() == 0, self.logs()
        for name in ("api", "relay", *WORKERS):
            self.run(name)
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until the service reports that all its parts are available."""
        self.eventually(lambda: self.answers("/readyz"), 120, "the service is not ready")

    def answers(self, path: str) -> bool:
        """Whether a GET returns 200."""
        try:
            return self.client.get(path).status_code == 200
        except httpx2.TransportError:
            return False

    def run(self, name: str) -> None:
        """Start one part."""
        program, *words = self.commands[name]
        with (self.home / "logs" / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [BIN / program, *words],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the kernel shares the CPU between all parts and the test
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # dies with pytest, even if that is killed
            )

    def stop(self, number: Signals = SIGTERM) -> int:
        """Stop all parts, workers first; each must end by itself."""
        codes: dict[str, int | str] = {}
        for group in (WORKERS, ("relay", "api")):
            stopping = {name: self.running.pop(name) for name in group if name in self.running}
            for process in stopping.values():
                process.send_signal(number)
            for name, process in stopping.items():
                try:
                    codes[name] = process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    codes[name] = "did not stop"
        assert all(code in (0, -number) for code in codes.values()), f"{codes}\n{self.logs()}"
        return 0

    def pid(self, name: str) -> int:
        return self.running[name].pid

    def kill(self, name: str) -> None:
        """kill -9 one part, and start it again."""
        self.running[name].kill()
        self.running[name].wait()
        self.run(name)
