"""Queries about stored files."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment


def get(session: Session, artifact_id: str) -> Artifact | None:
    """The file, if its experiment is one that the session sees."""
    query = select(Artifact).join(Experiment, Experiment.id == Artifact.experiment_id)
    return session.scalars(query.where(Artifact.id == artifact_id)).one_or_none()


def of(
    session: Session,
    experiment_id: str,
    kind: str | None = None,
    arm: str | None = None,
    seed: int | None = None,
) -> Sequence[Artifact]:
    """An experiment's files by name; None is any."""
    query = select(Artifact).where(Artifact.experiment_id == experiment_id)
    for column, wanted in ((Artifact.kind, kind), (Artifact.arm, arm), (Artifact.seed, seed)):
        if wanted is not None:
            query = query.where(column == wanted)
    return session.scalars(query.order_by(Artifact.name)).all()
