"""How a run is stopped, and what happens if it cannot be."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from app.core import database
from app.core.database import utcnow
from app.experiments import lifecycle, scheduling
from app.operations import relay
from app.tables.experiments import Experiment
from tests.worker.conftest import Backends, run_until_stopped
from worker import lease as lease_module
from worker.lease import Lease, StoppedError


def test_a_database_that_fails_until_the_lease_expires_loses_it(backends: Backends) -> None:
    settings = backends.settings.model_copy(update={"lease_seconds": 0.1})
    # Not entered, so that no thread sets the reason.
    lease = Lease(backends.database, settings, "some experiment", 1)

    def fail() -> None:
        raise OperationalError("SELECT 1", {}, Exception("the server is down"))

    lease.stop("canceled")
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


def test_sleeps_of_the_machine_do_not_end_a_run(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sleeps of an hour, after each of which the relay wakes first."""
    settings = backends.settings.model_copy(update={"relay_seconds": 0.1})
    experiment_id = backends.submit()
    slept = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept, sleep=time.sleep)
    monkeypatch.setattr(lease_module, "time", clock)
    seen = relay.Sightings()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        nonlocal slept
        for _ in range(3):
            slept += 3600
            with backends.database.writing() as session:
                session.execute(update(Experiment).values(lease_expires_at=utcnow() - timedelta(hours=1)))
            for _ in range(6):
                relay.step(settings, backends.database, Mock(pending=lambda _: 0), seen)
                recorder.check()
                time.sleep(settings.relay_seconds)
        return {}

    assert backends.run_attempt(experiment_id, run) == "succeeded"
    row = backends.experiment(experiment_id)
    assert (row.attempt, row.attempts_left) == (1, settings.max_attempts)


@pytest.mark.parametrize("hours", [-1, 1])
def test_leases_and_queues_go_by_the_clock_of_the_database(
    backends: Backends, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(database, "datetime", Wrong)
    assert abs(utcnow() - datetime.now(utcnow().tzinfo)) > timedelta(minutes=59)
    experiment_id = backends.submit()
    with backends.database.writing() as session:
        assert [message.experiment_id for message in scheduling.due(session)] == [experiment_id]
        claim = scheduling.claim_next(session, "none", "host:1:cpu", ["cpu"], backends.settings)
        assert claim is not None
        lifecycle.renew(session, *claim, 0.5)
    with backends.database.reading() as session:
        assert scheduling.expired(session, 0.5) == []  # it beats
        time.sleep(0.6)
        assert [one for one, _ in scheduling.expired(session, 0.5)] == [experiment_id]  # it is dead


def test_a_lease_from_before_the_clock_was_set_back_expires(backends: Backends) -> None:
    experiment_id = backends.submit()
    with backends.database.writing() as session:
        lifecycle.claim(session, experiment_id, "host:1:cpu", 3600)
        assert [one for one, _ in scheduling.expired(session, 30)] == [experiment_id]


def test_only_lost_attempts_that_got_no_further_count(backends: Backends) -> None:
    experiment_id = backends.submit()

    def advance(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        store.save_checkpoint("a1" * 32, b"an epoch further")
        time.sleep(3 * backends.settings.heartbeat_seconds)
        return fail(spec, recorder, store)

    def fail(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        backends.requeue(experiment_id)
        run_until_stopped(recorder)
        return {}

    runs = [fail, fail, advance, fail, fail]
    assert len(runs) > backends.settings.max_attempts
    for run in runs[:-1]:
        assert backends.run_attempt(experiment_id, run) == "lost"
        assert backends.experiment(experiment_id).status == "queued"
    assert backends.run_attempt(experiment_id, runs[-1]) == "lost"
    assert backends.experiment(experiment_id).status == "failed"


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
