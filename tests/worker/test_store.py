"""Claims on stages, stored stages and checkpoints, and damaged contents."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle
from app.tables.experiments import Stage
from tests.worker.conftest import Backends
from worker.lab.contracts import StageBusyError
from worker.lease import Lease, StoppedError
from worker.store import SqlStageStore

KEY = "a1" * 32


@contextmanager
def running(backends: Backends, experiment_id: str | None = None) -> Iterator[tuple[SqlStageStore, Lease]]:
    """The store and lease of a worker that claimed an experiment."""
    experiment_id = experiment_id or backends.submit()
    with backends.database.writing() as session:
        number = lifecycle.claim(session, experiment_id, "host:1:cpu", backends.settings.lease_seconds)
    assert number is not None
    with Lease(backends.database, backends.settings, experiment_id, number) as lease:
        yield SqlStageStore(lease, backends.objects, before_save=lambda: None), lease


def stage(backends: Backends) -> Stage:
    with backends.database.reading() as session:
        return session.get_one(Stage, KEY)


def test_a_saved_stage_is_available_to_all(backends: Backends) -> None:
    with running(backends) as (store, _):
        assert store.load(KEY) is None
        with store.claim(KEY, "victim"):
            store.save_checkpoint(KEY, b"half")
            store.save(KEY, "victim", b"whole")
        assert store.load_checkpoint(KEY) is None
    with running(backends) as (other, _):
        before = stage(backends).last_used_at
        assert other.load(KEY) == b"whole"
        assert stage(backends).last_used_at > before
    assert stage(backends).owner is None


def test_a_claimed_stage_is_busy_for_others(backends: Backends) -> None:
    with running(backends) as (store, _), running(backends) as (other, _):
        with (
            store.claim(KEY, "victim"),
            pytest.raises(StageBusyError, match=KEY[:12]),
            other.claim(KEY, "victim"),
        ):
            pass
        with other.claim(KEY, "victim"):
            assert stage(backends).owner is not None


def test_heartbeats_renew_the_claim(backends: Backends) -> None:
    with running(backends) as (store, _), running(backends) as (other, _), store.claim(KEY, "victim"):
        time.sleep(backends.settings.lease_seconds + 0.5)
        with pytest.raises(StageBusyError), other.claim(KEY, "victim"):
            pass


def test_the_claim_of_a_dead_owner_expires(backends: Backends) -> None:
    with running(backends) as (store, _):
        store.claim(KEY, "victim").__enter__()
    with backends.database.writing() as session:
        session.execute(update(Stage).values(lease_expires_at=utcnow() - timedelta(seconds=1)))
    with running(backends) as (other, _), other.claim(KEY, "victim"):
        assert stage(backends).owner is not None


def test_the_next_attempt_takes_over_the_claim(backends: Backends) -> None:
    experiment_id = backends.submit()
    with running(backends, experiment_id) as (store, _):
        store.claim(KEY, "victim").__enter__()
        backends.requeue(experiment_id)
    with running(backends, experiment_id) as (next_store, _), next_store.claim(KEY, "victim"):
        assert stage(backends).owner == f"{experiment_id}:2"


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_stage_counts_as_never_computed(backends: Backends, damage: str) -> None:
    with running(backends) as (store, _):
        with store.claim(KEY, "victim"):
            store.save(KEY, "victim", b"whole")
        name = f"stages/{KEY}.safetensors"
        if damage == "missing":
            backends.objects.delete(name)
        else:
            backends.objects.put(name, b"who" if damage == "truncated" else b"whale")
        assert store.load(KEY) is None
        assert stage(backends).ready_at is None
        with store.claim(KEY, "victim"):
            store.save(KEY, "victim", b"whole")
        assert store.load(KEY) == b"whole"


def test_a_checkpoint_is_replaced_and_a_damaged_one_ignored(backends: Backends) -> None:
    with running(backends) as (store, _):
        assert store.load_checkpoint(KEY) is None
        store.save_checkpoint(KEY, b"epoch 1")
        store.save_checkpoint(KEY, b"epoch 2")
        assert store.load_checkpoint(KEY) == b"epoch 2"
        content = backends.objects.get(f"checkpoints/{KEY}")
        assert content is not None
        backends.objects.put(f"checkpoints/{KEY}", content[:-1])
        assert store.load_checkpoint(KEY) is None


def test_a_worker_that_lost_its_lease_neither_claims_nor_saves(backends: Backends) -> None:
    experiment_id = backends.submit()
    with running(backends, experiment_id) as (store, _):
        backends.requeue(experiment_id)
        with pytest.raises(StoppedError):
            store.save(KEY, "victim", b"whole")
        with pytest.raises(StoppedError), store.claim(KEY, "victim"):
            pass
    with running(backends) as (other, _):
        assert other.load(KEY) is None
