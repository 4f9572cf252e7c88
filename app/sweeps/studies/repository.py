"""Queries about studies. On a request's session they see the owner's rows alone."""

from collections.abc import Sequence

from sqlalchemy import Row, exists, func, select
from sqlalchemy.orm import Session

from app.tables.experiments import SUCCEEDED, Experiment
from app.tables.results import ArmNote, ResultValue
from app.tables.sweeps import ArmKey, SweepCell, SweepExperiment

KEYS_A_QUERY = 1000
CLEAN_ACCURACY = "clean_accuracy"
MEASURED = (CLEAN_ACCURACY, "attack_success_rate")


def done(session: Session, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By key, the oldest succeeded experiment that has these numbers, and the arm that they are of.

    Until the transaction ends nobody can delete these experiments.
    """
    measured = exists().where(
        ResultValue.experiment_id == ArmKey.experiment_id,
        ResultValue.arm == ArmKey.arm,
        ResultValue.seed == ArmKey.seed,
        ResultValue.metric == CLEAN_ACCURACY,
        ResultValue.value.is_not(None),
    )
    found: dict[str, tuple[str, str]] = {}
    for start in range(0, len(keys), KEYS_A_QUERY):
        rows = session.execute(
            select(ArmKey.key, ArmKey.experiment_id, ArmKey.arm)
            .join(Experiment, Experiment.id == ArmKey.experiment_id)
            .where(
                ArmKey.key.in_(keys[start : start + KEYS_A_QUERY]), Experiment.status == SUCCEEDED, measured
            )
            .order_by(Experiment.created_at.desc(), Experiment.id.desc())  # an older one replaces a newer
            .with_for_update(read=True, key_share=True, of=Experiment)
        )
        found |= {key: (experiment_id, arm) for key, experiment_id, arm in rows}
    return found


def cells(session: Session, study_id: str) -> Sequence[SweepCell]:
    """Every cell, in the order of the numbers."""
    query = select(SweepCell).where(SweepCell.sweep_id == study_id).order_by(SweepCell.number)
    return session.scalars(query).all()


def experiments(session: Session, study_id: str) -> dict[str, tuple[str, bool]]:
    """By experiment that the study uses, its status, and whether the study submitted it."""
    rows = session.execute(
        select(Experiment.id, Experiment.status, SweepExperiment.made)
        .select_from(SweepExperiment)
        .outerjoin(Experiment, Experiment.id == SweepExperiment.experiment_id)  # not the other way round
        .where(SweepExperiment.sweep_id == study_id)
    )
    return {
        experiment_id: (status, made) for experiment_id, status, made in rows if experiment_id is not None
    }


def values(session: Session, study_id: str) -> Sequence[Row[str, str, int, str, float | None]]:
    """(experiment, arm, seed, metric, value) of the metrics that a table shows."""
    return session.execute(
        select(
            ResultValue.experiment_id,
            ResultValue.arm,
            ResultValue.seed,
            ResultValue.metric,
            ResultValue.value,
        )
        .join(SweepExperiment, SweepExperiment.experiment_id == ResultValue.experiment_id)
        # Else SQLite starts with its index of metrics, and goes through the numbers of all experiments.
        .where(SweepExperiment.sweep_id == study_id, func.coalesce(ResultValue.metric, "").in_(MEASURED))
    ).all()


def notes(session: Session, study_id: str) -> Sequence[ArmNote]:
    """Warnings and errors of the study's experiments."""
    query = select(ArmNote).join(SweepExperiment, SweepExperiment.experiment_id == ArmNote.experiment_id)
    return session.scalars(query.where(SweepExperiment.sweep_id == study_id)).all()
