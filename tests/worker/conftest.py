"""A database and an object store for each test, and experiments in them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  # as a worker's process, before it claims: an import may take longer than a short lease
from sqlalchemy import make_url

from app.core.database import Database, utcnow
from app.core.objects import Objects
from app.experiments import lifecycle
from app.operations.schema import upgrade
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.placement import placement_of
from app.tables.experiments import Experiment
from tests.databases import migrate
from tests.servers import Postgres
from worker.attempt import run_attempt


@dataclass
class Backends:
    """The back ends of a worker, and shortcuts to what is stored in them."""

    settings: Settings
    database: Database
    objects: Objects

    def submit(self, **spec: Any) -> str:
        """Queue an experiment; returns its id."""
        parsed = ExperimentSpec.model_validate(spec)
        with self.database.writing() as session:
            experiment = Experiment(
                name="",
                spec=parsed.model_dump(mode="json"),
                spec_hash=parsed.spec_hash,
                dataset=parsed.dataset.name,
                model=parsed.model.name,
                attack=parsed.attack.name,
                placement=placement_of(parsed),
                priority=parsed.priority,
                created_at=utcnow(),
                queued_at=utcnow(),
                attempts_left=self.settings.max_attempts,
            )
            session.add(experiment)
            session.flush()
            lifecycle.enqueue(session, experiment)
            return experiment.id

    def requeue(self, experiment_id: str) -> None:
        """Take the lease away, as the relay does after a worker died."""
        with self.database.writing() as session:
            experiment = lifecycle.lock(session, experiment_id)
            assert experiment is not None
            assert lifecycle.lose(session, experiment_id, experiment.attempt, "no heartbeat")

    def run_attempt(self, experiment_id: str, run: Callable[..., dict[str, Any]]) -> str | None:
        return run_attempt(experiment_id, "host:1:cpu", self.settings, run)

    def experiment(self, experiment_id: str) -> Experiment:
        with self.database.reading() as session:
            return session.get_one(Experiment, experiment_id)

    def rows(self, table: type[Any], experiment_id: str) -> list[Any]:
        with self.database.reading() as session:
            return list(session.query(table).filter(table.experiment_id == experiment_id))


def run_until_stopped(recorder: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        recorder.check()
        time.sleep(0.01)
    raise AssertionError("the run was not stopped")


@pytest.fixture(scope="session")
def schema(postgres: Postgres) -> str:
    """The name of a migrated PostgreSQL database, used as a template."""
    url = postgres.fresh()
    upgrade(url)
    return str(make_url(url).database)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Empty for SQLite in the home folder, or the URL of a migrated PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.fresh(request.getfixturevalue("schema"))


@pytest.fixture
def backends(tmp_path: Path, database_url: str) -> Any:
    settings = Settings(
        home=tmp_path,
        database_url=database_url,
        lease_seconds=2,
        heartbeat_seconds=0.2,
        storage_patience_seconds=1.5,
        stage_busy_seconds=7,
        checkpoint_seconds=0,
    )
    migrate(settings.database)
    database = Database(settings.database)
    yield Backends(settings, database, Objects(settings.objects))
    database.close()
