"""The rules of states, attempts and leases, on a real database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.database import Database, utcnow
from app.experiments import lifecycle, scheduling
from app.specs.experiment import ExperimentSpec
from app.tables.experiments import Attempt, Event, Experiment, Outbox
from tests.databases import migrate


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def one(database: Database) -> str:
    """A queued experiment with two attempts left."""
    spec = ExperimentSpec()
    with database.writing() as session:
        experiment = Experiment(
            name="",
            spec=spec.model_dump(mode="json"),
            spec_hash=spec.spec_hash,
            dataset="digits",
            model="small_cnn",
            attack="badnets",
            created_at=utcnow(),
            queued_at=utcnow(),
            attempts_left=2,
            attempt=0,
            progress={},
        )
        session.add(experiment)
        session.flush()
        lifecycle.enqueue(session, experiment)
        return experiment.id


def claim(database: Database, one: str, worker: str = "w", lease: float = 60) -> int | None:
    with database.writing() as session:
        return lifecycle.claim(session, one, worker, lease)


def look(database: Database, one: str) -> Experiment:
    with database.reading() as session:
        return session.get_one(Experiment, one)


def history(database: Database, one: str) -> list[tuple[int, str | None]]:
    with database.reading() as session:
        query = select(Attempt).where(Attempt.experiment_id == one).order_by(Attempt.number)
        return [(a.number, a.outcome) for a in session.scalars(query)]


def everything(database: Database) -> list[tuple[object, ...]]:
    """All rows of all tables that a worker writes, to show that nothing was written."""
    with database.reading() as session:
        tables = (Experiment, Attempt, Event, Outbox)
        return [tuple(row) for t in tables for row in session.execute(select(*t.__table__.columns))]


def test_of_many_claims_one_wins(database: Database, one: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda n: claim(database, one, f"w{n}"), range(8)))
    assert sorted(attempts, key=str) == [1] + [None] * 7
    assert history(database, one) == [(1, None)]


def test_a_lost_lease_writes_nothing(database: Database, one: str) -> None:
    first = claim(database, one)
    with database.writing() as session:
        assert lifecycle.lose(session, one, first, "gone")
    second = claim(database, one, "other")
    assert (first, second) == (1, 2)
    before = everything(database)
    with database.writing() as session:
        assert not lifecycle.still_owned(session, one, first)
        assert not lifecycle.finish(session, one, first, "succeeded")
        assert not lifecycle.wait(session, one, first, 5)
        assert not lifecycle.lose(session, one, first, "again")
        with pytest.raises(lifecycle.LeaseLost):
            lifecycle.renew(session, one, first, 60)
    assert everything(database) == before
    with database.writing() as session:
        assert lifecycle.still_owned(session, one, second)


def test_a_final_state_never_changes(database: Database, one: str) -> None:
    attempt = claim(database, one)
    with database.writing() as session:
        assert lifecycle.finish(session, one, attempt, "succeeded")
    before = everything(database)
    with database.writing() as session:
        assert not lifecycle.finish(session, one, attempt, "failed", "too late")
        experiment = lifecycle.lock(session, one)
        lifecycle.cancel(session, experiment)
    assert claim(database, one) is None
    assert everything(database) == before


def test_lost_attempts_are_counted_and_then_it_fails(database: Database, one: str) -> None:
    for expected in ("queued", "failed"):
        with database.writing() as session:
            lifecycle.lose(session, one, lifecycle.claim(session, one, "w", 60), "no heartbeat from w")
        assert look(database, one).status == expected
    assert "no heartbeat from w" in look(database, one).error["reason"]
    assert history(database, one) == [(1, "lost"), (2, "lost")]


def test_waiting_costs_no_attempt_and_is_shown_as_one(database: Database, one: str) -> None:
    for number in range(1, 6):
        attempt = claim(database, one)
        assert attempt == number
        with database.writing() as session:
            assert lifecycle.wait(session, one, attempt, 30)
    found = look(database, one)
    assert (found.status, found.attempts_left) == ("queued", 2)
    assert history(database, one) == [(5, "waiting")]
    with database.reading() as session:
        newest = session.scalars(select(Outbox).order_by(Outbox.id.desc()).limit(1)).one()
        assert newest.not_before > utcnow() + timedelta(seconds=20)
        assert newest.id not in [m.id for m in scheduling.due(session)]


def test_a_cancel_is_seen_wherever_the_attempt_ends(database: Database, one: str) -> None:
    attempt = claim(database, one)
    with database.writing() as session:
        lifecycle.cancel(session, lifecycle.lock(session, one))
    with database.writing() as session:
        assert lifecycle.renew(session, one, attempt, 60)
        assert lifecycle.wait(session, one, attempt, 5)
    assert look(database, one).status == "canceled"


def test_a_dead_worker_leaves_a_canceled_experiment_canceled(database: Database, one: str) -> None:
    claim(database, one, lease=-1)
    with database.writing() as session:
        lifecycle.cancel(session, lifecycle.lock(session, one))
        [(_, expired_at)] = scheduling.expired(session, 30)
        assert scheduling.reap(session, one, expired_at)
    assert look(database, one).status == "canceled"


def test_only_an_expired_lease_is_reaped(database: Database, one: str) -> None:
    attempt = claim(database, one, lease=-1)
    with database.reading() as session:
        [(expired, expired_at)] = scheduling.expired(session, 30)
        assert expired == one
    with database.writing() as session:
        lifecycle.renew(session, one, attempt, 60)  # heard of between the two looks
        assert not scheduling.reap(session, one, expired_at)
    assert look(database, one).status == "running"


def test_events_tell_every_state_in_order(database: Database, one: str) -> None:
    with database.writing() as session:
        lifecycle.lose(session, one, lifecycle.claim(session, one, "w", 60), "gone")
        lifecycle.finish(session, one, lifecycle.claim(session, one, "w", 60), "succeeded")
    with database.reading() as session:
        events = session.scalars(select(Event).order_by(Event.id)).all()
    assert [e.data["status"] for e in events] == ["queued", "running", "queued", "running", "succeeded"]
    assert events[2].data["reason"] == "gone"


def test_old_rows_go_and_young_ones_stay(database: Database, one: str) -> None:
    with database.writing() as session:
        [message] = scheduling.due(session)
        scheduling.mark_published(session, [message.id])
        scheduling.purge(session, 60, 60)
        assert len(session.scalars(select(Outbox)).all()) == 1
        session.get_one(Outbox, message.id).published_at = utcnow() - timedelta(seconds=61)
        session.flush()
        scheduling.purge(session, 60, 60)
        assert session.scalars(select(Outbox)).all() == []
