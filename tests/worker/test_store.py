"""Stages and checkpoints: who may compute, what counts as computed, what damage does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle
from app.tables.experiments import Stage
from tests.worker.conftest import House
from worker.lab.contracts import StageBusyError
from worker.lease import Lease, StoppedError
from worker.store import SqlStageStore

KEY = "a1" * 32


@contextmanager
def running(house: House, experiment_id: str | None = None) -> Iterator[tuple[SqlStageStore, Lease]]:
    """The store of a worker that holds an experiment."""
    mine = experiment_id or house.submit()
    with house.database.writing() as session:
        number = lifecycle.claim(session, mine, "host:1:cpu", house.settings.lease_seconds)
    assert number is not None
    with Lease(house.database, house.settings, mine, number) as lease:
        yield SqlStageStore(lease, house.objects, before_save=lambda: None), lease


def stage(house: House) -> Stage:
    with house.database.reading() as session:
        return session.get_one(Stage, KEY)


def test_a_saved_stage_is_there_for_all(house: House) -> None:
    with running(house) as (store, _):
        assert store.load(KEY) is None
        with store.claim(KEY, "victim"):
            store.save_checkpoint(KEY, b"half")
            store.save(KEY, "victim", b"whole")
        assert store.load_checkpoint(KEY) is None
    with running(house) as (other, _):
        before = stage(house).last_used_at
        assert other.load(KEY) == b"whole"
        assert stage(house).last_used_at > before
    assert stage(house).owner is None


def test_one_worker_computes_while_the_others_are_told_to_come_back(house: House) -> None:
    with running(house) as (store, _), running(house) as (other, _):
        with (
            store.claim(KEY, "victim"),
            pytest.raises(StageBusyError, match=KEY[:12]),
            other.claim(KEY, "victim"),
        ):
            pass
        with other.claim(KEY, "victim"):
            assert stage(house).owner is not None


def test_a_claim_lasts_as_long_as_its_owner_lives(house: House) -> None:
    with running(house) as (store, _), running(house) as (other, _), store.claim(KEY, "victim"):
        time.sleep(house.settings.lease_seconds + 0.5)
        with pytest.raises(StageBusyError), other.claim(KEY, "victim"):
            pass


def test_a_dead_owners_claim_expires(house: House) -> None:
    with running(house) as (store, _):
        store.claim(KEY, "victim").__enter__()
    with house.database.writing() as session:
        session.execute(update(Stage).values(lease_expires_at=utcnow() - timedelta(seconds=1)))
    with running(house) as (other, _), other.claim(KEY, "victim"):
        assert stage(house).owner is not None


def test_the_next_attempt_takes_over_the_claim_of_the_one_before(house: House) -> None:
    mine = house.submit()
    with running(house, mine) as (store, _):
        store.claim(KEY, "victim").__enter__()
        house.requeue(mine)
    with running(house, mine) as (again, _), again.claim(KEY, "victim"):
        assert stage(house).owner == f"{mine}:2"


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_stage_counts_as_never_computed(house: House, damage: str) -> None:
    with running(house) as (store, _):
        with store.claim(KEY, "victim"):
            store.save(KEY, "victim", b"whole")
        name = f"stages/{KEY}.safetensors"
        if damage == "gone":
            house.objects.delete(name)
        else:
            house.objects.put(name, b"who" if damage == "cut" else b"whale")
        assert store.load(KEY) is None
        assert stage(house).ready_at is None
        with store.claim(KEY, "victim"):
            store.save(KEY, "victim", b"whole")
        assert store.load(KEY) == b"whole"


def test_a_checkpoint_is_replaced_and_a_damaged_one_ignored(house: House) -> None:
    with running(house) as (store, _):
        assert store.load_checkpoint(KEY) is None
        store.save_checkpoint(KEY, b"epoch 1")
        store.save_checkpoint(KEY, b"epoch 2")
        assert store.load_checkpoint(KEY) == b"epoch 2"
        stored = house.objects.get(f"checkpoints/{KEY}")
        assert stored is not None
        house.objects.put(f"checkpoints/{KEY}", stored[:-1])
        assert store.load_checkpoint(KEY) is None


def test_who_lost_the_lease_neither_claims_nor_saves(house: House) -> None:
    mine = house.submit()
    with running(house, mine) as (store, _):
        house.requeue(mine)
        with pytest.raises(StoppedError):
            store.save(KEY, "victim", b"whole")
        with pytest.raises(StoppedError), store.claim(KEY, "victim"):
            pass
    with running(house) as (other, _):
        assert other.load(KEY) is None
