"""Corrects the keys of experiments that were planned for another version of the lab, other data, or another device."""

import logging

from sqlalchemy import delete, update

from app.core.errors import InvalidError
from app.experiments.planning import plan_again
from app.settings import Settings
from app.specs.experiment import ExperimentSpec
from app.specs.stages import LAB_VERSION
from app.tables.experiments import Experiment
from app.tables.sweeps import ArmKey
from worker.lab.compute import choose_precision
from worker.lease import Lease

log = logging.getLogger(__name__)


def rekey(lease: Lease, spec: ExperimentSpec, settings: Settings) -> None:
    """Replace the keys of the experiment's stages and arms by those of this version and of this machine's data and
    precision, if they differ.

    Stages of the older version, of other data or of another precision are then not reused, and numbers that an older
    worker reported are replaced, so one experiment or key never mixes numbers of two.
    """
    precision = choose_precision(spec.device, spec.training.precision)
    experiment_id = lease.experiment_id
    with lease.database.reading() as session:
        experiment = session.get_one(Experiment, experiment_id)
        try:
            planned = plan_again(session, spec, settings.datasets, precision)
        except InvalidError:
            return  # what the spec refers to is missing or damaged here; the run says so
        if experiment.lab_version == LAB_VERSION and experiment.stages == planned.stored_stages:
            return
    with lease.writing() as session:
        session.execute(delete(ArmKey).where(ArmKey.experiment_id == experiment_id))
        session.add_all(
            ArmKey(experiment_id=experiment_id, arm=arm, seed=seed, key=key)
            for (arm, seed), key in planned.arm_keys.items()
        )
        session.execute(
            update(Experiment)
            .where(Experiment.id == experiment_id)
            .values(lab_version=LAB_VERSION, stages=planned.stored_stages)
        )
    log.info("experiment %s has new keys, of lab version %d", experiment_id, LAB_VERSION)
