"""The service as a team runs it: each part a process of its own, started by the commands of docs/deployment.md."""

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

MARKS = {
    "migration": "bdlab migrate",
    "api": "app.main:create_app",
    "relay": "app.operations.relay",
    "worker": "bdlab worker$",
    "interactive": "bdlab worker interactive$",
    "checks": "bdlab worker checks$",
}
WORKERS = ("worker", "interactive", "checks")
BIN = Path(sys.executable).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "deployment.md"


def commands() -> dict[str, list[str]]:
    """The command of each part, as the documentation has it."""
    told = re.findall(r"^\|[^|]+\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    found = {name: [line.split() for line in told if re.search(mark, line)] for name, mark in MARKS.items()}
    return {name: command for name, [command] in found.items()}


class Parts(Stack):
    """The same service without `bdlab up`; what dies is started again by the test alone."""

    def __init__(self, home: Path, **environment: str) -> None:
        super().__init__(home, **environment)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.commands = commands()
        (port,) = free_ports(1)
        self.commands["api"] += ["--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.client.base_url = self.url

    def start(self) -> None:
        """Bring the database up to date, start all parts, and wait until the service is ready."""
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self.run("migration")
        assert self.running.pop("migration").wait() == 0, self.logs()
        for name in ("api", "relay", *WORKERS):
            self.run(name)
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until API, database, broker, objects and workers are there."""
        self.eventually(lambda: self.answers("/readyz"), 120, "the service is not ready")

    def answers(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
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
                start_new_session=True,  # so that the kernel shares the CPU out between all parts and the test
                preexec_fn=before_exec(0, os.getpid()),  # noqa: PLW1509  # gone with pytest, even if that is killed
            )

    def stop(self, number: Signals = SIGTERM) -> int:
        """Stop all parts, workers first; each must come to its own end."""
        codes: dict[str, int | str] = {}
        for group in (WORKERS, ("relay", "api")):
            ending = {name: self.running.pop(name) for name in group if name in self.running}
            for process in ending.values():
                process.send_signal(number)
            for name, process in ending.items():
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
