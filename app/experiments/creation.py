"""New experiments: their rows, what they are found by, and the messages that announce them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.core.database import utcnow, write
from app.data.resolve import hold, uses
from app.experiments import lifecycle
from app.specs.experiment import ExperimentSpec
from app.specs.placement import placement_of
from app.specs.stages import LAB_VERSION
from app.tables.experiments import QUEUED, Experiment, Label
from app.tables.sweeps import ArmKey
from app.team import quotas


class Planned(NamedTuple):
    """A spec that was found to fit its data set, and by arm and seed the content-address of its numbers."""

    spec: ExperimentSpec
    keys: dict[tuple[str, int], str]


def create(session: Session, planned: Sequence[Planned], attempts: int) -> list[Experiment]:
    """Write the experiments and the messages that announce them, in a few statements however many they are.

    Workers take them in this order. ``attempts`` is how many of their attempts may be lost.
    Raises TooManyError if a quota of the session's owner does not let all of them in.
    """
    quotas.admit(session, len(planned))
    hold(session, {use for one in planned for use in uses(one.spec)})
    experiments = [_row(one.spec, attempts) for one in planned]
    session.add_all(experiments)
    session.flush()
    pairs = list(zip(experiments, planned, strict=True))
    write(session, Label, [{"experiment_id": e.id, **row} for e, one in pairs for row in _labels(one.spec)])
    lifecycle.announce(session, experiments)
    keys = [
        {"experiment_id": e.id, "arm": arm, "seed": seed, "key": key}
        for e, one in pairs
        for (arm, seed), key in one.keys.items()
    ]
    write(session, ArmKey, keys)
    return experiments


def _row(spec: ExperimentSpec, attempts: int) -> Experiment:
    now = utcnow()
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
    )


def _labels(spec: ExperimentSpec) -> Iterator[dict[str, str]]:
    for key, value in spec.tags.items():
        yield {"kind": "tag", "key": key, "value": value}
    for name in sorted({d.name for d in spec.defenses}):
        yield {"kind": "defense", "key": name, "value": ""}
    for kind, upload_id in uses(spec):
        yield {"kind": kind, "key": upload_id, "value": ""}
