"""Any order of submit, cancel, retry, delete, work, crashes and relay rounds keeps the promises about experiments.

The service, the lifecycle, the queue and the relay are the real ones, on a real SQLite. The broker is a list that
loses, repeats and reorders messages; time passes when a rule says so.
"""

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select

import app.experiments.idempotency
import app.experiments.lifecycle
from app.core.broker import BrokerError
from app.core.context import Context
from app.core.database import Database, utcnow
from app.core.errors import ConflictError, NotFoundError
from app.core.objects import Objects
from app.core.security import make_signer
from app.experiments import lifecycle, scheduling, service
from app.operations import relay
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.placement import CPU
from app.specs.status import TERMINAL
from app.tables.experiments import QUEUED, RUNNING, SUCCEEDED, Attempt, Event, Experiment, Outbox
from tests.databases import migrate

CLOCKS = (app.experiments.idempotency, app.experiments.lifecycle)
"""Modules that read this machine's clock; the others read the database's."""
SPEC = ExperimentSpec()
LEASE = 30.0
PICK = st.integers(min_value=0, max_value=10**6)

SECONDS = [1.0, 6.0, LEASE + 1, 61.0, 3600.0]
ENDS = ["succeeded", "failed", "canceled", "wait", "lose"]
WORK = ["claim", "claim", "write_an_end", "write_an_end", "another_worker_takes_over", "heartbeat", "crash"]
WORLD = [
    "relay_round",
    "relay_round",
    "relay_dies_before_it_notes_what_it_sent",
    "broker_goes_or_comes",
    "broker_forgets",
    "time_passes",
    "old_rows_go",
]


class Killed(BaseException):
    """kill -9, between two statements."""


class ListBroker:
    """A broker as unreliable as one may be."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.down = False

    def send_experiment(self, experiment_id: str, queue: str) -> None:
        assert queue == CPU
        if self.down:
            raise BrokerError("broker: it is away")
        self.messages.append(experiment_id)

    def send_check(self, upload_id: str) -> None:
        raise AssertionError("there are no uploads")

    def pending(self, queue: str) -> int:
        if self.down:
            raise BrokerError("broker: it is away")
        return len(self.messages)


@dataclass
class Life:
    """What must be true of an experiment, as its users were told."""

    ended: tuple[Any, ...] | None = None
    """The row's end, from when it was first seen until a retry."""
    attempt: int = 0
    runs: int = 1
    """How often it may come to an end: once, and once for each retry."""
    events: list[str] = field(default_factory=list)


@seed(0)  # else a change of this file's text changes the runs, and how much happens in them
class Experiments(RuleBasedStateMachine):
    template: Path
    happened: ClassVar[Counter[str]] = Counter()
    """Over all runs, so that the test can tell whether it saw enough."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="bdlab-machine-"))
        self.patch = pytest.MonkeyPatch()
        self.now = utcnow()
        for module in CLOCKS:
            self.patch.setattr(module, "utcnow", self.time)
        given = Settings(
            home=self.folder,
            data_dir=self.folder / "data",
            lease_seconds=LEASE,
            heartbeat_seconds=1,
            max_attempts=2,
        )
        shutil.copy(self.template, self.folder / "bdlab.sqlite3")
        self.database, self.broker = Database(given.database), ListBroker()
        event.listen(self.database.engine, "connect", self.set_clock)
        self.seen = relay.Sightings()
        broker: Any = self.broker
        self.context = Context(given, self.database, Objects(given.objects), broker, make_signer(given))
        self.lives: dict[str, Life] = {}
        self.deleted: set[str] = set()
        self.workers: list[tuple[str, int]] = []
        """Claims of workers that live."""
        self.dead: list[tuple[str, int]] = []
        """Claims of workers that are gone for the service, but may wake up and go on."""

    def teardown(self) -> None:
        try:
            if self.lives:
                self.nothing_is_lost_in_the_end()
        finally:
            self.patch.undo()
            self.database.close()
            shutil.rmtree(self.folder)

    def set_clock(self, connection: Any, _record: Any) -> None:
        """Replace SQLite's own clock."""

        def strftime(_format: str, _now: str, modifier: str) -> str:
            return f"{self.time() + timedelta(seconds=float(modifier.split(maxsplit=1)[0])):%Y-%m-%d %H:%M:%S.%f}"

        connection.create_function("strftime", 3, strftime)

    def time(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def rows(self) -> list[Experiment]:
        with self.database.reading() as session:
            return list(session.scalars(select(Experiment).order_by(Experiment.id)))

    def some(self, pick: int) -> str:
        known = sorted(self.lives)
        return known[pick % len(known)]

    # Three rules for all that can happen: of many rules Hypothesis leaves some out of each run, and hardly a run then
    # had experiments, workers and a relay at once.

    @rule(
        what=st.sampled_from(["submit", "cancel", "retry", "delete"]),
        pick=PICK,
        key=st.sampled_from([None, "a"]),
    )
    def users(self, what: str, pick: int, key: str | None) -> None:
        if what == "submit":
            self.submit(key)
        else:
            getattr(self, what)(pick)

    @rule(what=st.sampled_from(WORK), pick=PICK, keep=st.booleans(), how=st.sampled_from(ENDS))
    def workers_do(self, what: str, pick: int, keep: bool, how: Any) -> None:
        if what == "claim":
            self.claim(pick, keep)
        elif what == "write_an_end":
            self.write_an_end(pick, how)
        else:
            getattr(self, what)(pick)

    @rule(what=st.sampled_from(WORLD), down=st.booleans(), seconds=st.sampled_from(SECONDS))
    def world(self, what: str, down: bool, seconds: float) -> None:
        if what == "broker_goes_or_comes":
            self.broker.down = down
        elif what == "time_passes":
            self.time_passes(seconds)
        else:
            getattr(self, what)()

    # What users do.

    @initialize()
    def begin(self) -> None:
        """Hypothesis leaves whole rules out of some runs; without an experiment nothing would happen in them."""
        self.submit(None)
        self.submit(None)

    def submit(self, key: str | None) -> None:
        if len(self.lives) >= 3:  # few, so that much happens to each
            return
        answer, replayed = service.submit(self.context, SPEC, key)
        assert replayed == (answer["id"] in self.lives or answer["id"] in self.deleted)
        assert key is not None or not replayed
        if not replayed:
            self.lives[answer["id"]] = Life()

    def cancel(self, pick: int) -> None:
        if not self.lives:
            return
        chosen = self.some(pick)
        before = next(row.status for row in self.rows() if row.id == chosen)
        try:
            after = service.cancel(self.context, chosen)
        except ConflictError:
            assert before in ("succeeded", "failed")
        else:
            assert after.status == {QUEUED: "canceled"}.get(before, before)

    def retry(self, pick: int) -> None:
        if not self.lives:
            return
        chosen = self.some(pick)
        before = next(row.status for row in self.rows() if row.id == chosen)
        try:
            service.retry(self.context, chosen)
        except ConflictError:
            assert before not in TERMINAL
        else:
            assert before in TERMINAL
            self.lives[chosen].ended = None
            self.lives[chosen].runs += 1

    def delete(self, pick: int) -> None:
        if len(self.lives) < 2:
            return
        chosen = self.some(pick)
        before = next(row.status for row in self.rows() if row.id == chosen)
        try:
            service.remove(self.context, chosen)
        except ConflictError:
            assert before == RUNNING
        else:
            assert before != RUNNING
            del self.lives[chosen]
            self.deleted.add(chosen)
            with pytest.raises(NotFoundError):
                service.remove(self.context, chosen)

    # What workers do.

    def claim(self, pick: int, keep: bool) -> None:
        """Messages come in any order, and some come twice."""
        if not self.broker.messages:
            self.relay_round()
        if not self.broker.messages:
            return
        place = pick % len(self.broker.messages)
        hint = self.broker.messages[place] if keep else self.broker.messages.pop(place)
        waiting = [row for row in self.rows() if row.status == QUEUED]
        due = [row for row in waiting if row.due_at <= self.now or row.id == hint]
        taken = self.take(hint)
        assert (taken is not None) == bool(due)
        if taken is not None:
            first = min(due, key=lambda row: (row.queued_at, row.id))
            assert taken == (first.id, first.attempt + 1), "it was not its turn"
            self.happened["claim"] += 1
            self.workers.append(taken)

    def take(self, hint: str) -> scheduling.Claim | None:
        """What a message makes a worker do."""
        with self.database.writing() as session:
            return scheduling.claim_next(session, hint, "w", [CPU], self.context.settings)

    def heartbeat(self, pick: int) -> None:
        if not self.workers:
            return
        chosen, attempt = self.workers[pick % len(self.workers)]
        row = {row.id: row for row in self.rows()}.get(chosen)
        mine = row is not None and row.status == RUNNING and row.attempt == attempt
        try:
            with self.database.writing() as session:
                canceled = lifecycle.renew(session, chosen, attempt, LEASE)
        except lifecycle.LeaseLost:
            assert not mine
            self.workers.remove((chosen, attempt))
        else:
            assert mine
            assert row is not None
            assert canceled == (row.cancel_requested_at is not None)

    def write_an_end(self, pick: int, how: Any) -> None:
        """By a worker that holds its lease, or by one that lost it long ago and does not know."""
        if not (self.workers or self.dead):
            return
        held = self.workers + self.dead
        chosen, attempt = held[pick % len(held)]
        row = {row.id: row for row in self.rows()}.get(chosen)
        mine = row is not None and row.status == RUNNING and row.attempt == attempt
        with self.database.writing() as session:
            if how == "wait":
                written = lifecycle.wait(session, chosen, attempt, 5.0)
            elif how == "lose":
                written = lifecycle.lose(session, chosen, attempt, "no space")
            else:
                written = lifecycle.finish(session, chosen, attempt, how)
        assert written == mine
        self.happened["end" if written else "refused"] += 1
        for claims in (self.workers, self.dead):
            if (chosen, attempt) in claims:
                claims.remove((chosen, attempt))

    def crash(self, pick: int) -> None:
        if not self.workers:
            return
        self.dead.append(self.workers.pop(pick % len(self.workers)))

    def another_worker_takes_over(self, pick: int) -> None:
        """The way to a worker that was taken for dead and goes on; by single steps it is seldom found."""
        if not self.workers:
            return
        chosen, _ = self.workers[pick % len(self.workers)]
        self.crash(pick)
        self.time_passes(LEASE + 1)
        self.broker.down = False
        self.relay_round()
        if chosen in self.broker.messages:
            self.claim(self.broker.messages.index(chosen), keep=False)

    # What the rest of the world does.

    def relay_round(self) -> None:
        try:
            for _ in range(2):  # in the second one an expired lease is lost
                relay.step(self.context.settings, self.database, self.broker, self.seen)  # type: ignore[arg-type]
        except BrokerError:
            assert self.broker.down

    def relay_dies_before_it_notes_what_it_sent(self) -> None:
        with pytest.MonkeyPatch.context() as patch:

            def killed(*_: Any) -> None:
                raise Killed

            patch.setattr(scheduling, "mark_published", killed)
            with suppress(Killed, BrokerError):
                relay.step(self.context.settings, self.database, self.broker, self.seen)  # type: ignore[arg-type]

    def broker_forgets(self) -> None:
        self.broker.messages.clear()

    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def old_rows_go(self) -> None:
        with self.database.writing() as session:
            scheduling.purge(session, 86_400, 120)

    # What is always true.

    @invariant()
    def the_promises_hold(self) -> None:
        rows = {row.id: row for row in self.rows()}
        assert set(rows) == set(self.lives), "an experiment is lost, or came back"
        with self.database.reading() as session:
            tries = session.scalars(select(Attempt).order_by(Attempt.number)).all()
            told = session.execute(select(Event.experiment_id, Event.data).order_by(Event.id)).all()
        for experiment_id, life in self.lives.items():
            row = rows[experiment_id]
            mine = [t for t in tries if t.experiment_id == experiment_id]
            assert row.attempt >= life.attempt, "attempts count upwards"
            life.attempt = row.attempt
            assert all(t.number <= row.attempt for t in mine)
            open_ = [t.number for t in mine if t.outcome is None]
            assert open_ == ([row.attempt] if row.status == RUNNING else []), "one live lease at most"
            assert (row.lease_expires_at is not None) == (row.status == RUNNING)
            assert (row.worker is not None) == (row.status == RUNNING)
            assert sum(t.outcome == SUCCEEDED for t in mine) <= life.runs, "completed twice"
            assert 0 <= row.attempts_left <= self.context.settings.max_attempts
            states = [data["status"] for owner, data in told if owner == experiment_id]
            assert states[: len(life.events)] == life.events, "events are history"
            life.events = states
            assert states[-1] == row.status
            end = (row.status, row.attempt, row.finished_at, row.error) if row.status in TERMINAL else None
            assert life.ended in (None, end), "a final state changed"
            life.ended = end

    def nothing_is_lost_in_the_end(self) -> None:
        """Everything heals: whatever had been going on, every experiment ends and no message is left."""
        self.broker.down = False
        for _ in range(12):
            self.now += timedelta(seconds=3601)
            self.relay_round()
            for message in self.broker.messages:
                if taken := self.take(message):
                    with self.database.writing() as session:
                        assert lifecycle.finish(session, *taken, "succeeded")
            self.broker.messages.clear()
        assert {row.status for row in self.rows()} <= set(TERMINAL)
        with self.database.reading() as session:
            left = session.scalars(select(Outbox.id).where(Outbox.published_at.is_(None))).all()
        assert left == []
        self.the_promises_hold()


def test_any_order_of_events_keeps_the_promises(tmp_path: Path) -> None:
    template = tmp_path / "template.sqlite3"
    migrate(f"sqlite:///{template}")
    Experiments.template = template
    run_state_machine_as_test(
        Experiments,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # to shorten what fails takes minutes: add Phase.shrink by hand
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Experiments.happened["claim"] >= 40, Experiments.happened
    assert Experiments.happened["end"] >= 25, Experiments.happened
    assert Experiments.happened["refused"] >= 8, Experiments.happened
