"""Count the files whose functions run between POST /v1/experiments and the stored results of one experiment.

    python benchmarks/submission_files.py

API, relay and worker run in this process: one request through the real server, one round of the relay with a broker
that only accepts messages, one attempt with the real lab. A profiler records the file of every function that is
called. A first experiment runs unrecorded, so that imports do not count.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `tests`

from app.core.database import Database
from app.main import create_app
from app.operations import relay, schema
from app.settings import Settings
from tests.quick import QUICK
from worker.attempt import run_attempt
from worker.lab.experiment import run_experiment

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZED = 1  # a function's code, not that of a module or class body


class Recorder:
    """The files of the functions that are called while ``on``."""

    def __init__(self) -> None:
        self.on = False
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self.on and event == "call" and frame.f_code.co_flags & OPTIMIZED:
            self.files.add(frame.f_code.co_filename)


class AcceptingBroker:
    """Stands in for the broker."""

    def send_experiment(self, *_: str) -> None:
        pass


def main() -> None:
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        schema.upgrade(settings.database)
        server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        for seed in (0, 1):
            recorder.on = seed == 1
            answer = httpx2.post(f"{url}/v1/experiments", json={**QUICK, "seeds": [seed]})
            database = Database(settings.database)
            relay._publish_due(settings, database, AcceptingBroker(), set())  # type: ignore[arg-type]
            database.close()
            assert run_attempt(answer.json()["id"], "host:1:cpu", settings, run_experiment) == "succeeded"
        recorder.on = False
        server.should_exit = True
        thread.join()
    files = sorted(str(Path(f).relative_to(ROOT)) for f in recorder.files if f.startswith(f"{ROOT}/"))
    files = [f for f in files if f.startswith(("app/", "worker/"))]
    files += [
        "worker/celery.py",
        "worker/tasks.py",
    ]  # Celery's side of the attempt, which is called here directly
    print(*files, sep="\n")
    folders = Counter("worker/lab" if f.startswith("worker/lab/") else f.rpartition("/")[0] for f in files)
    for name, count in sorted(folders.items()):
        print(f"{count:4} {name}")
    lab = folders["worker/lab"]
    print(f"{len(files)} files, of which {lab} belong to the lab and {len(files) - lab} to the service")


if __name__ == "__main__":
    main()
