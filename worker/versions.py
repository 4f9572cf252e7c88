"""Experiments that were described by an older version of the lab."""

import logging

from sqlalchemy import delete, update

from app.data import resolve
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.stages import LAB_VERSION, arm_keys, plan
from app.tables.experiments import Experiment
from app.tables.sweeps import ArmKey
from worker.lease import Lease

log = logging.getLogger(__name__)


def redescribe(lease: Lease, spec: ExperimentSpec, settings: Settings) -> None:
    """Give the experiment the keys of this version, in place of those under which an older API wrote it down.

    Its stages have other keys now too, so nothing that an older worker computed is used, and every number that one
    reported is replaced. Numbers of two versions never stand in one experiment, nor under one key.
    """
    with lease.database.reading() as session:
        data = resolve.facts_of(session, spec.dataset, settings.datasets)
        victim = resolve.victim_of(session, spec)
    keys = arm_keys(spec, plan(spec, data.version, victim.sha256 if victim is not None else ""))
    mine = lease.experiment_id
    with lease.writing() as session:
        session.execute(delete(ArmKey).where(ArmKey.experiment_id == mine))
        session.add_all(
            ArmKey(experiment_id=mine, arm=arm, seed=seed, key=key) for (arm, seed), key in keys.items()
        )
        session.execute(update(Experiment).where(Experiment.id == mine).values(lab_version=LAB_VERSION))
    log.info("experiment %s is described anew, for lab version %d", mine, LAB_VERSION)
