"""An owner's session sees the owner's rows alone, whatever the query looks like."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, exists, func, insert, select, union_all, update
from sqlalchemy.orm import Session, aliased

from app.core.database import Database, utcnow
from app.experiments import lifecycle, repository
from app.tables.experiments import Experiment, Label
from app.tables.owners import Owner
from tests.app.conftest import Service


@pytest.fixture(scope="module")
def made(service: Service) -> dict[str, str]:
    """One experiment of each of two owners."""
    service.add(*(Owner(id=name, name=name, created_at=utcnow()) for name in ("ann", "bob")))
    return {name: add(service.database.of(name)) for name in ("ann", "bob")}


def add(database: Database) -> str:
    experiment = Experiment(
        name="e",
        spec={},
        spec_hash="h",
        dataset="digits",
        model="small_cnn",
        attack="none",
        created_at=utcnow(),
        queued_at=utcnow(),
        attempts_left=1,
        progress={},
    )
    with database.writing() as session:
        session.add(experiment)
        session.flush()
        session.add(Label(experiment_id=experiment.id, kind="tag", key="k", value="v"))
    return experiment.id


other = aliased(Experiment)
inner = select(Experiment.id).subquery()
common = select(Experiment.id).cte()
QUERIES: dict[str, Callable[[Session], Any]] = {
    "rows": lambda s: [e.id for e in s.scalars(select(Experiment))],
    "columns": lambda s: s.scalars(select(Experiment.id)).all(),
    "alias": lambda s: s.scalars(select(other.id)).all(),
    "subquery": lambda s: s.scalars(select(inner.c.id)).all(),
    "common table": lambda s: s.scalars(select(common.c.id)).all(),
    "in": lambda s: s.scalars(
        select(Label.experiment_id).where(Label.experiment_id.in_(select(Experiment.id)))
    ),
    "join": lambda s: s.scalars(select(Label.experiment_id).join(Experiment)),
    "exists": lambda s: s.scalars(
        select(Label.experiment_id).where(exists().where(Experiment.id == Label.experiment_id))
    ),
    "union": lambda s: s.scalars(
        union_all(select(Experiment.id), select(Experiment.id).where(Experiment.id == ""))
    ),
    "grouped": lambda s: s.scalars(select(func.max(Experiment.id)).group_by(Experiment.status)),
}


@pytest.mark.parametrize("name", QUERIES)
def test_every_form_of_query_is_filtered(service: Service, made: dict[str, str], name: str) -> None:
    with service.database.of("ann").reading() as session:
        assert list(QUERIES[name](session)) == [made["ann"]]


def test_counts_and_single_rows_are_filtered(service: Service, made: dict[str, str]) -> None:
    with service.database.of("ann").writing() as session:
        assert session.scalar(select(func.count()).select_from(Experiment)) == 1
        assert session.get(Experiment, made["bob"]) is None
        assert repository.status(session, made["bob"]) is None
        assert lifecycle.lock(session, made["bob"]) is None
        assert lifecycle.lock(session, made["ann"]) is not None


def test_foreign_rows_can_be_neither_changed_nor_deleted(service: Service, made: dict[str, str]) -> None:
    with service.database.of("ann").writing() as session:
        session.execute(update(Experiment).values(name="mine"))
        session.execute(delete(Experiment).where(Experiment.id == made["bob"]))
    with service.database.reading() as session:
        names = dict(session.execute(select(Experiment.owner_id, Experiment.name)).all())
    assert names == {"ann": "mine", "bob": "e"}


def test_rows_in_bulk_are_refused_because_they_would_have_no_owner(service: Service) -> None:
    with service.database.of("ann").writing() as session, pytest.raises(RuntimeError, match=r"session\.add"):
        session.execute(insert(Experiment), [{"name": "e"}])


def test_two_owners_may_use_the_same_idempotency_key(service: Service, made: dict[str, str]) -> None:
    before = service.submit(**{"Idempotency-Key": "same"})
    with service.database.of("ann").reading() as session:
        assert repository.first_answer(session, "same") is None
    with service.database.of("local").reading() as session:
        remembered = repository.first_answer(session, "same")
    assert remembered is not None
    assert remembered.experiment_id == before["id"]
