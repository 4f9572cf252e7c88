"""Attempts with a real database and object store, and a few lines in place of the lab."""

import errno
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle
from app.tables.artifacts import Artifact
from app.tables.experiments import Attempt, Event, Experiment, LogLine, Outbox
from app.tables.results import ArmNote, MetricPoint, ResultValue
from tests.worker.conftest import Backends, run_until_stopped
from worker.lab.contracts import NonFiniteLossError, Scope, SpecError, StageBusyError

SCOPE = Scope("undefended", 0, "victim")
PNG = b"\x89PNG, not really"


def report(recorder: Any, epochs: int = 3) -> None:
    """Report one of everything, as a run does."""
    recorder.log("started\nwith two lines")
    for epoch in range(1, epochs + 1):
        recorder.check()
        recorder.metric(SCOPE, "loss", epoch, 1.0 / epoch)
        recorder.progress(SCOPE, epoch, epochs, epoch / epochs)
    recorder.warning(SCOPE, "few images")
    recorder.artifact(SCOPE, "seed-0/undefended/curves.png", "figure", "image/png", PNG, {"n": 1})
    recorder.result(SCOPE, {"clean_accuracy": 0.9, "attack_success_rate": None, "clean_loss": float("inf")})


def complete(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
    report(recorder)
    return {}


def later(seconds: float, action: Callable[[], None]) -> threading.Thread:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_everything_reported_is_stored(backends: Backends) -> None:
    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, complete) == "succeeded"

    assert backends.experiment(experiment_id).status == "succeeded"
    assert backends.experiment(experiment_id).progress["stage"] == "victim"
    assert [(p.step, p.value) for p in backends.rows(MetricPoint, experiment_id)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1.0 / 3),
    ]
    values = {r.metric: r.value for r in backends.rows(ResultValue, experiment_id)}
    assert values == {"clean_accuracy": 0.9, "attack_success_rate": None, "clean_loss": None}
    assert [line.message for line in backends.rows(LogLine, experiment_id)] == ["started", "with two lines"]
    (artifact,) = backends.rows(Artifact, experiment_id)
    assert backends.objects.get(artifact.object_key) == PNG
    assert (artifact.size, artifact.kind, artifact.seed) == (len(PNG), "figure", 0)
    kinds = [event.type for event in backends.rows(Event, experiment_id)]
    assert {"state", "progress", "artifact", "warning", "result"} == set(kinds)
    assert kinds[-1] == "state"
    (attempt,) = backends.rows(Attempt, experiment_id)
    assert (attempt.number, attempt.outcome) == (1, "succeeded")


def test_a_message_is_only_a_hint(backends: Backends) -> None:
    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, complete) == "succeeded"
    assert backends.run_attempt(experiment_id, complete) is None
    assert backends.run_attempt("no such id", complete) is None
    assert len(backends.rows(Attempt, experiment_id)) == 1


def test_a_second_attempt_that_reports_the_same_creates_no_duplicates(backends: Backends) -> None:
    experiment_id = backends.submit()

    def dies(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        report(recorder)
        recorder.flush()
        backends.requeue(experiment_id)
        run_until_stopped(recorder)
        return {}

    assert backends.run_attempt(experiment_id, dies) == "lost"
    assert backends.run_attempt(experiment_id, complete) == "succeeded"
    assert len(backends.rows(MetricPoint, experiment_id)) == 3
    assert len(backends.rows(ResultValue, experiment_id)) == 3
    assert len(backends.rows(Artifact, experiment_id)) == 1
    events = [event.type for event in backends.rows(Event, experiment_id)]
    assert [events.count(kind) for kind in ("artifact", "warning", "result")] == [1, 1, 1]
    assert [row.outcome for row in backends.rows(Attempt, experiment_id)] == ["lost", "succeeded"]


def test_a_replaced_artifact_keeps_its_id(backends: Backends) -> None:
    def twice(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        for data in (b"old", b"new"):
            recorder.artifact(SCOPE, "results.json", "table", "application/json", data, {})
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, twice) == "succeeded"
    (artifact,) = backends.rows(Artifact, experiment_id)
    assert backends.objects.get(artifact.object_key) == b"new"
    assert list(backends.objects.list_all()) == [artifact.object_key]
    announced_ids = [
        event.data["id"] for event in backends.rows(Event, experiment_id) if event.type == "artifact"
    ]
    assert announced_ids == [artifact.id, artifact.id]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SpecError("poisoning_rate: 0.9 is too high"), "poisoning_rate: 0.9 is too high"),
        (ValueError("boom"), "ValueError: boom"),
    ],
)
def test_an_error_fails_the_experiment_with_its_reason(
    backends: Backends, error: Exception, reason: str
) -> None:
    def breaks(*_: Any, **__: Any) -> dict[str, Any]:
        raise error

    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, breaks) == "failed"
    row = backends.experiment(experiment_id)
    assert row.status == "failed"
    assert row.error == {"reason": reason, "attempt": 1}
    has_traceback = any("Traceback" in line.message for line in backends.rows(LogLine, experiment_id))
    assert has_traceback == isinstance(error, ValueError)


def test_a_failed_arm_does_not_affect_the_others(backends: Backends) -> None:
    def one_fails(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        report(recorder)
        recorder.metric(Scope("abl", 0), "loss", 1, float("nan"))
        recorder.arm_failed(Scope("abl", 0), NonFiniteLossError("epoch 2, batch 7: the loss is nan"))
        return {}

    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, one_fails) == "succeeded"
    (note,) = [note for note in backends.rows(ArmNote, experiment_id) if note.kind == "error"]
    assert (note.arm, note.seed, note.message) == ("abl", 0, "epoch 2, batch 7: the loss is nan")
    assert {row.arm for row in backends.rows(ResultValue, experiment_id)} == {"undefended"}


def test_an_experiment_fails_if_every_arm_does(backends: Backends) -> None:
    def all_fail(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        recorder.arm_failed(SCOPE, NonFiniteLossError("epoch 1, batch 1: the loss is nan"))
        return {}

    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, all_fail) == "failed"
    assert "epoch 1, batch 1" in str(backends.experiment(experiment_id).error)


def test_a_result_deletes_the_error_of_its_arm(backends: Backends) -> None:
    def fails_then_works(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        recorder.arm_failed(SCOPE, NonFiniteLossError("epoch 1, batch 1: the loss is nan"))
        recorder.flush()
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    experiment_id = backends.submit()
    assert backends.run_attempt(experiment_id, fails_then_works) == "succeeded"
    assert backends.rows(ArmNote, experiment_id) == []


def test_a_busy_stage_requeues_the_experiment_with_a_delay(backends: Backends) -> None:
    def busy(*_: Any, **__: Any) -> dict[str, Any]:
        raise StageBusyError("another worker computes it")

    experiment_id = backends.submit()
    before = utcnow()
    assert backends.run_attempt(experiment_id, busy) == "requeued"
    row = backends.experiment(experiment_id)
    assert (row.status, row.attempts_left) == ("queued", backends.settings.max_attempts)
    due_at = max(message.not_before for message in backends.rows(Outbox, experiment_id))
    assert timedelta(seconds=6) < due_at - before < timedelta(seconds=9)


def test_a_cancel_stops_the_run_at_its_next_batch(backends: Backends) -> None:
    experiment_id = backends.submit()
    requested_at = []

    def cancel() -> None:
        with backends.database.writing() as session:
            row = lifecycle.lock(session, experiment_id)
            assert row is not None
            lifecycle.cancel(session, row)
        requested_at.append(time.monotonic())

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        report(recorder)
        later(0.3, cancel)
        run_until_stopped(recorder)
        return {}

    assert backends.run_attempt(experiment_id, run) == "canceled"
    assert time.monotonic() - requested_at[0] < 2
    assert backends.experiment(experiment_id).status == "canceled"
    assert len(backends.rows(MetricPoint, experiment_id)) == 3


def test_a_worker_that_lost_its_lease_writes_nothing(backends: Backends) -> None:
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        backends.requeue(experiment_id)
        recorder.metric(SCOPE, "loss", 1, 1.0)
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        recorder.log("still here")
        run_until_stopped(recorder)
        return {}

    assert backends.run_attempt(experiment_id, run) == "lost"
    assert backends.experiment(experiment_id).status == "queued"
    for table in (MetricPoint, ResultValue, LogLine):
        assert backends.rows(table, experiment_id) == []


def test_a_worker_that_lost_its_lease_cannot_finish(backends: Backends) -> None:
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        backends.requeue(experiment_id)
        return {}

    assert backends.run_attempt(experiment_id, run) == "lost"
    assert backends.experiment(experiment_id).status == "queued"


def test_a_short_outage_of_the_database_loses_nothing(backends: Backends) -> None:
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with backends.database.writing() as session:  # blocks all other writers
            session.execute(update(Experiment).values(name="busy"))
            recorder.metric(SCOPE, "loss", 1, 1.0)
            time.sleep(1)
            recorder.check()
        recorder.result(SCOPE, {"clean_accuracy": 1.0})
        return {}

    assert backends.run_attempt(experiment_id, run) == "succeeded"
    assert len(backends.rows(MetricPoint, experiment_id)) == 1


def test_a_long_outage_of_the_database_ends_the_run(backends: Backends) -> None:
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        with backends.database.writing() as session:
            session.execute(update(Experiment).values(name="busy"))
            run_until_stopped(recorder)
        return {}

    start = time.monotonic()
    backends.run_attempt(experiment_id, run)
    assert backends.settings.lease_seconds <= time.monotonic() - start < 8
    assert backends.experiment(experiment_id).status == "running"  # until the relay requeues it


def test_a_short_outage_of_the_object_store_loses_nothing(backends: Backends, tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    experiment_id = backends.submit()

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        folder.rename(tmp_path / "away")
        folder.touch()

        def restore() -> None:
            folder.unlink()
            (tmp_path / "away").rename(folder)

        later(0.5, restore)
        return complete(spec, recorder, store)

    assert backends.run_attempt(experiment_id, run) == "succeeded"
    (artifact,) = backends.rows(Artifact, experiment_id)
    assert backends.objects.get(artifact.object_key) == PNG


def test_an_experiment_waits_while_the_object_store_is_full(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = backends.submit()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", refuse)
        for _ in range(2):
            assert backends.run_attempt(experiment_id, complete) == "requeued"
    assert time.monotonic() - start > 2 * backends.settings.storage_patience_seconds
    assert backends.rows(Artifact, experiment_id) == []
    row = backends.experiment(experiment_id)
    assert (row.status, row.attempts_left) == ("queued", backends.settings.max_attempts)
    [attempt] = backends.rows(Attempt, experiment_id)
    assert (attempt.outcome, "No space left on device" in attempt.reason) == ("waiting", True)
    assert any("retrying for 1.5 s" in line.message for line in backends.rows(LogLine, experiment_id))
    assert backends.run_attempt(experiment_id, complete) == "succeeded"
