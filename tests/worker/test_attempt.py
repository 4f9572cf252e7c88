"""An attempt against a real database and object store; only the science is replaced by a few lines."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle
from app.tables.artifacts import Artifact
from app.tables.experiments import Attempt, Event, Experiment, LogLine, Outbox
from app.tables.results import ArmNote, MetricPoint, ResultValue
from tests.worker.conftest import House
from worker.lab.contracts import NonFiniteLossError, Scope, SpecError, StageBusyError

SCOPE = Scope("undefended", 0, "victim")
PNG = b"\x89PNG pretended"


def tell(recorder: Any, epochs: int = 3) -> None:
    """What a run tells, in small."""
    recorder.log("started\nwith two lines")
    for epoch in range(1, epochs + 1):
        recorder.check()
        recorder.metric(SCOPE, "loss", epoch, 1.0 / epoch)
        recorder.progress(SCOPE, epoch, epochs, epoch / epochs)
    recorder.warning(SCOPE, "few images")
    recorder.artifact(SCOPE, "seed-0/undefended/curves.png", "figure", "image/png", PNG, {"n": 1})
    recorder.result(SCOPE, {"clean_accuracy": 0.9, "attack_success_rate": None, "clean_loss": float("inf")})


def complete(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
    tell(recorder)
    return {}


def endless(recorder: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        recorder.check()
        time.sleep(0.01)
    raise AssertionError("the run was not stopped")


def later(seconds: float, action: Callable[[], None]) -> threading.Thread:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_everything_told_is_kept(house: House) -> None:
    mine = house.submit()
    assert house.try_(mine, complete) == "succeeded"

    assert house.experiment(mine).status == "succeeded"
    assert house.experiment(mine).progress["stage"] == "victim"
    assert [(p.step, p.value) for p in house.rows(MetricPoint, mine)] == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    values = {r.metric: r.value for r in house.rows(ResultValue, mine)}
    assert values == {"clean_accuracy": 0.9, "attack_success_rate": None, "clean_loss": None}
    assert [line.message for line in house.rows(LogLine, mine)] == ["started", "with two lines"]
    (artifact,) = house.rows(Artifact, mine)
    assert house.objects.get(artifact.object_key) == PNG
    assert (artifact.size, artifact.kind, artifact.seed) == (len(PNG), "figure", 0)
    kinds = [event.type for event in house.rows(Event, mine)]
    assert {"state", "progress", "artifact", "warning", "result"} == set(kinds)
    assert kinds[-1] == "state"
    (tried,) = house.rows(Attempt, mine)
    assert (tried.number, tried.outcome) == (1, "succeeded")


def test_a_message_is_only_a_hint(house: House) -> None:
    mine = house.submit()
    assert house.try_(mine, complete) == "succeeded"
    assert house.try_(mine, complete) is None
    assert house.try_("no such id", complete) is None
    assert len(house.rows(Attempt, mine)) == 1


def test_a_second_attempt_that_tells_the_same_leaves_no_duplicates(house: House) -> None:
    mine = house.submit()

    def dies(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        tell(recorder)
        recorder.flush()
        house.requeue(mine)
        endless(recorder)
        return {}

    assert house.try_(mine, dies) == "lost"
    assert house.try_(mine, complete) == "succeeded"
    assert len(house.rows(MetricPoint, mine)) == 3
    assert len(house.rows(ResultValue, mine)) == 3
    assert len(house.rows(Artifact, mine)) == 1
    events = [event.type for event in house.rows(Event, mine)]
    assert [events.count(kind) for kind in ("artifact", "warning", "result")] == [1, 1, 1]
    assert [row.outcome for row in house.rows(Attempt, mine)] == ["lost", "succeeded"]


def test_a_replaced_artifact_keeps_its_id(house: House) -> None:
    def twice(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        for data in (b"old", b"new"):
            recorder.artifact(SCOPE, "results.json", "table", "application/json", data, {})
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    mine = house.submit()
    assert house.try_(mine, twice) == "succeeded"
    (artifact,) = house.rows(Artifact, mine)
    assert house.objects.get(artifact.object_key) == b"new"
    told = [event.data["id"] for event in house.rows(Event, mine) if event.type == "artifact"]
    assert told == [artifact.id, artifact.id]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SpecError("poisoning_rate: 0.9 is too high"), "poisoning_rate: 0.9 is too high"),
        (ValueError("boom"), "ValueError: boom"),
    ],
)
def test_an_error_fails_the_experiment_with_its_reason(house: House, error: Exception, reason: str) -> None:
    def breaks(*_: Any, **__: Any) -> dict[str, Any]:
        raise error

    mine = house.submit()
    assert house.try_(mine, breaks) == "failed"
    row = house.experiment(mine)
    assert row.status == "failed"
    assert row.error == {"reason": reason, "attempt": 1}
    traced = any("Traceback" in line.message for line in house.rows(LogLine, mine))
    assert traced == isinstance(error, ValueError)


def test_an_arm_that_fails_leaves_the_others_their_results(house: House) -> None:
    def one_fails(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        tell(recorder)
        recorder.metric(Scope("abl", 0), "loss", 1, float("nan"))
        recorder.arm_failed(Scope("abl", 0), NonFiniteLossError("epoch 2, batch 7: the loss is nan"))
        return {}

    mine = house.submit()
    assert house.try_(mine, one_fails) == "succeeded"
    (note,) = [note for note in house.rows(ArmNote, mine) if note.kind == "error"]
    assert (note.arm, note.seed, note.message) == ("abl", 0, "epoch 2, batch 7: the loss is nan")
    assert {row.arm for row in house.rows(ResultValue, mine)} == {"undefended"}


def test_an_experiment_fails_if_every_arm_does(house: House) -> None:
    def all_fail(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        recorder.arm_failed(SCOPE, NonFiniteLossError("epoch 1, batch 1: the loss is nan"))
        return {}

    mine = house.submit()
    assert house.try_(mine, all_fail) == "failed"
    assert "epoch 1, batch 1" in str(house.experiment(mine).error)


def test_an_arm_that_recovers_loses_its_error(house: House) -> None:
    def fails_then_works(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        recorder.arm_failed(SCOPE, NonFiniteLossError("epoch 1, batch 1: the loss is nan"))
        recorder.flush()
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    mine = house.submit()
    assert house.try_(mine, fails_then_works) == "succeeded"
    assert house.rows(ArmNote, mine) == []


def test_a_busy_stage_puts_the_experiment_back_for_a_while(house: House) -> None:
    def busy(*_: Any, **__: Any) -> dict[str, Any]:
        raise StageBusyError("another worker computes it")

    mine = house.submit()
    before = utcnow()
    assert house.try_(mine, busy) == "requeued"
    row = house.experiment(mine)
    assert (row.status, row.attempts_left) == ("queued", house.settings.max_attempts)
    again = max(message.not_before for message in house.rows(Outbox, mine))
    assert timedelta(seconds=6) < again - before < timedelta(seconds=9)


def test_a_cancel_stops_the_run_at_its_next_batch(house: House) -> None:
    mine = house.submit()
    asked = []

    def cancel() -> None:
        with house.database.writing() as session:
            row = lifecycle.lock(session, mine)
            assert row is not None
            lifecycle.cancel(session, row)
        asked.append(time.monotonic())

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        tell(recorder)
        later(0.3, cancel)
        endless(recorder)
        return {}

    assert house.try_(mine, run) == "canceled"
    assert time.monotonic() - asked[0] < 2
    assert house.experiment(mine).status == "canceled"
    assert len(house.rows(MetricPoint, mine)) == 3


def test_a_worker_that_lost_its_lease_writes_nothing_more(house: House) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        house.requeue(mine)
        recorder.metric(SCOPE, "loss", 1, 1.0)
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        recorder.log("still here")
        endless(recorder)
        return {}

    assert house.try_(mine, run) == "lost"
    assert house.experiment(mine).status == "queued"
    for table in (MetricPoint, ResultValue, LogLine):
        assert house.rows(table, mine) == []


def test_a_worker_that_lost_its_lease_cannot_finish(house: House) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        house.requeue(mine)
        return {}

    assert house.try_(mine, run) == "lost"
    assert house.experiment(mine).status == "queued"


def test_a_database_that_is_away_for_a_moment_goes_unnoticed(house: House) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with house.database.writing() as session:  # nobody else can write now
            session.execute(update(Experiment).values(name="busy"))
            recorder.metric(SCOPE, "loss", 1, 1.0)
            time.sleep(1)
            recorder.check()
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    assert house.try_(mine, run) == "succeeded"
    assert len(house.rows(MetricPoint, mine)) == 1


def test_a_database_that_stays_away_ends_the_run(house: House) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with house.database.writing() as session:
            session.execute(update(Experiment).values(name="busy"))
            endless(recorder)
        return {}

    start = time.monotonic()
    house.try_(mine, run)
    assert house.settings.lease_seconds <= time.monotonic() - start < 8
    assert house.experiment(mine).status == "running"  # the relay will find it


def test_an_object_store_that_comes_back_costs_only_time(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        folder.rename(tmp_path / "away")
        folder.touch()

        def mend() -> None:
            folder.unlink()
            (tmp_path / "away").rename(folder)

        later(0.5, mend)
        return complete(spec, recorder, store)

    assert house.try_(mine, run) == "succeeded"
    (artifact,) = house.rows(Artifact, mine)
    assert house.objects.get(artifact.object_key) == PNG


def test_an_object_store_that_stays_away_fails_the_experiment(house: House, tmp_path: Path) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        (tmp_path / "objects").rename(tmp_path / "away")
        (tmp_path / "objects").touch()
        return complete(spec, recorder, store)

    start = time.monotonic()
    assert house.try_(mine, run) == "failed"
    assert time.monotonic() - start > house.settings.storage_patience_seconds
    assert "object store" in str(house.experiment(mine).error)
    assert house.rows(Artifact, mine) == []


def test_sigterm_hands_the_experiment_back(house: House) -> None:
    mine = house.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        endless(recorder)
        return {}

    assert house.try_(mine, run) == "requeued"
    row = house.experiment(mine)
    assert (row.status, row.attempts_left) == ("queued", house.settings.max_attempts)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


STUCK = """
import sys, time
from app.settings import Settings
from worker.attempt import run_attempt
run_attempt(sys.argv[1], "host:1:cpu", Settings(), lambda *a, **k: time.sleep(60))
"""


def test_a_run_that_ignores_a_cancel_takes_its_process_along(house: House, tmp_path: Path) -> None:
    mine = house.submit()
    environment = os.environ | {
        "BDLAB_HOME": str(tmp_path),
        "BDLAB_DATABASE_URL": house.settings.database_url,
        "BDLAB_CANCEL_GRACE_SECONDS": "0.5",
        "BDLAB_HEARTBEAT_SECONDS": "0.2",
    }
    process = subprocess.Popen([sys.executable, "-c", STUCK, mine], env=environment)
    try:
        deadline = time.monotonic() + 20
        while house.experiment(mine).status != "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        with house.database.writing() as session:
            row = lifecycle.lock(session, mine)
            assert row is not None
            lifecycle.cancel(session, row)
        assert process.wait(timeout=10) == 70
    finally:
        process.kill()
        process.wait()
    assert house.experiment(mine).status == "canceled"
