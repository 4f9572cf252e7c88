"""How a run is stopped, and what happens if it cannot be."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from app.experiments import lifecycle
from tests.worker.conftest import Backends, run_until_stopped
from worker.lease import Lease, StoppedError


def test_a_database_that_fails_until_the_lease_expires_loses_it(backends: Backends) -> None:
    settings = backends.settings.model_copy(update={"lease_seconds": 0.1})
    # Not entered, so that no thread sets the reason.
    lease = Lease(backends.database, settings, "some experiment", 1)

    def fail() -> None:
        raise OperationalError("SELECT 1", {}, Exception("the server is down"))

    with pytest.raises(StoppedError):
        lease.retrying(fail)
    assert lease.stop_reason == "lost"


def test_sigterm_requeues_the_experiment(backends: Backends) -> None:
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        run_until_stopped(recorder)
        return {}

    assert backends.run_attempt(experiment_id, run) == "requeued"
    row = backends.experiment(experiment_id)
    assert (row.status, row.attempts_left) == ("queued", backends.settings.max_attempts)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


STUCK = """
import sys, time
from app.settings import Settings
from worker.attempt import run_attempt
run_attempt(sys.argv[1], "host:1:cpu", Settings(), lambda *a, **k: time.sleep(60))
"""


def test_a_run_that_does_not_stop_ends_its_process(backends: Backends, tmp_path: Path) -> None:
    experiment_id = backends.submit()
    environment = os.environ | {
        "BDLAB_HOME": str(tmp_path),
        "BDLAB_DATABASE_URL": backends.settings.database_url,
        "BDLAB_CANCEL_GRACE_SECONDS": "0.5",
        "BDLAB_HEARTBEAT_SECONDS": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-c", STUCK, experiment_id], env=environment)
    try:
        deadline = time.monotonic() + 20
        while backends.experiment(experiment_id).status != "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        with backends.database.writing() as session:
            row = lifecycle.lock(session, experiment_id)
            assert row is not None
            lifecycle.cancel(session, row)
        assert process.wait(timeout=10) == 70
    finally:
        process.kill()
        process.wait()
    assert backends.experiment(experiment_id).status == "canceled"
