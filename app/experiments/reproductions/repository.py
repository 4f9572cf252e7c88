"""Queries about reproductions and manifests."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.experiments.reproductions.agreement import Key
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment
from app.tables.reproductions import Reproduction
from app.tables.results import ResultValue

MANIFEST = "manifest.json"
"""Name of the artifact that every completed run stores."""
MOST = 100


def original_of(session: Session, experiment_id: str) -> str | None:
    """The id of the experiment that this one reproduces; None if it reproduces none.

    The caller has made sure that the session's owner may see this one.
    """
    row = session.get(Reproduction, experiment_id)
    return row.original_id if row is not None else None


def of(session: Session, original_id: str) -> Sequence[tuple[str, str]]:
    """(id, status) of the reproductions of an experiment, the newest first."""
    query = (
        select(Experiment.id, Experiment.status)
        .join(Reproduction, Reproduction.experiment_id == Experiment.id)
        .where(Reproduction.original_id == original_id)
    )
    return [(i, status) for i, status in session.execute(query.order_by(Experiment.id.desc()).limit(MOST))]


def manifest_key(session: Session, experiment_id: str) -> str | None:
    """The object key of an experiment's manifest."""
    mine = (Artifact.experiment_id == experiment_id, Artifact.name == MANIFEST)
    return session.scalar(select(Artifact.object_key).where(*mine))


def numbers(session: Session, experiment_id: str) -> dict[Key, float | None]:
    """Every final number by arm, seed and metric."""
    columns = (ResultValue.arm, ResultValue.seed, ResultValue.metric, ResultValue.value)
    query = select(*columns).where(ResultValue.experiment_id == experiment_id)
    order = (ResultValue.arm, ResultValue.seed, ResultValue.metric)
    return {
        (arm, seed, metric): value for arm, seed, metric, value in session.execute(query.order_by(*order))
    }
