"""New experiments: their rows, labels, arm keys and outbox rows."""

from collections.abc import Iterator, Sequence

from sqlalchemy.orm import Session

from app.core.database import utcnow, write
from app.data.resolve import lock_uploads, named_uploads
from app.experiments import lifecycle
from app.experiments.planning import PlannedExperiment
from app.specs.experiment import ExperimentSpec
from app.specs.placement import placement_of
from app.specs.stages import LAB_VERSION
from app.tables.experiments import QUEUED, Experiment, Label
from app.tables.sweeps import ArmKey
from app.team import quotas


def create(session: Session, planned: Sequence[PlannedExperiment], attempts: int) -> list[Experiment]:
    """Write queued experiments and their outbox rows, in the same few statements for any number of them.

    Workers claim them in this order. ``attempts`` is how many of their attempts may be lost.
    Raises TooManyError if they exceed a quota of the session's owner, and InvalidError if an upload was deleted.
    """
    quotas.admit_experiments(session, len(planned))
    lock_uploads(session, {upload for one in planned for upload in named_uploads(one.spec)})
    experiments = [_row(one, attempts) for one in planned]
    session.add_all(experiments)
    session.flush()
    pairs = list(zip(experiments, planned, strict=True))
    write(session, Label, [{"experiment_id": e.id, **row} for e, one in pairs for row in _labels(one.spec)])
    lifecycle.announce(session, experiments)
    keys = [
        {"experiment_id": e.id, "arm": arm, "seed": seed, "key": key}
        for e, one in pairs
        for (arm, seed), key in one.arm_keys.items()
    ]
    write(session, ArmKey, keys)
    return experiments


def _row(planned: PlannedExperiment, attempts: int) -> Experiment:
    now, spec = utcnow(), planned.spec
    return Experiment(
        name=spec.name,
        status=QUEUED,
        spec=spec.model_dump(mode="json"),
        spec_hash=spec.spec_hash,
        dataset=spec.dataset.name,
        model=spec.model.name,
        attack=spec.attack.name,
        placement=placement_of(spec),
        priority=spec.priority,
        lab_version=LAB_VERSION,
        created_at=now,
        due_at=now,
        queued_at=now,
        attempt=0,
        attempts_left=attempts,
        progress={},
        stages=planned.stored_stages,
    )


def _labels(spec: ExperimentSpec) -> Iterator[dict[str, str]]:
    for key, value in spec.tags.items():
        yield {"kind": "tag", "key": key, "value": value}
    for name in sorted({d.name for d in spec.defenses}):
        yield {"kind": "defense", "key": name, "value": ""}
    for kind, upload_id in named_uploads(spec):
        yield {"kind": kind, "key": upload_id, "value": ""}
