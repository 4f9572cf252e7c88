"""Queries about stored files."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment


def get(session: Session, artifact_id: str) -> Artifact | None:
    """The file, if the session sees its experiment."""
    query = select(Artifact).join(Experiment, Experiment.id == Artifact.experiment_id)
    return session.scalars(query.where(Artifact.id == artifact_id)).one_or_none()


def list_artifacts(
    session: Session,
    experiment_id: str,
    kind: str | None = None,
    arm: str | None = None,
    seed: int | None = None,
) -> Sequence[Artifact]:
    """The files of an experiment sorted by name; None is no filter."""
    filters = {"kind": kind, "arm": arm, "seed": seed}
    query = select(Artifact).filter_by(
        experiment_id=experiment_id, **{name: value for name, value in filters.items() if value is not None}
    )
    return session.scalars(query.order_by(Artifact.name)).all()
