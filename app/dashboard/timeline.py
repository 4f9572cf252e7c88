"""The states of the stages of an experiment."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from app.experiments.schemas import ExperimentOut, StageOut

State = Literal["done", "running", "pending", "skipped", "failed"]
MAX_SEEDS = 5
SHARED = "data and attack"


class Step(NamedTuple):
    """One stage of one arm and seed."""

    kind: str
    state: State


class Row(NamedTuple):
    """The stages of one arm, in order."""

    arm: str
    steps: list[Step]


class SeedRows(NamedTuple):
    """Every arm of one seed. The first row has the stages that the arms share."""

    seed: int
    done: int
    total: int
    rows: list[Row]


def timeline(
    experiment: ExperimentOut, stages: list[StageOut], failed: Collection[tuple[str, int]] = ()
) -> list[SeedRows]:
    """The ``stages`` with their states, by seed and arm. ``failed`` are the arms and seeds that have an error.

    Includes at most `MAX_SEEDS` seeds, from the one that runs.
    """
    seeds = list(experiment.spec["seeds"])
    current = experiment.progress.seed if experiment.status == "running" else None
    first = min(seeds.index(current), max(0, len(seeds) - MAX_SEEDS)) if current in seeds else 0
    return [_seed_rows(experiment, seed, stages, failed) for seed in seeds[first : first + MAX_SEEDS]]


def _seed_rows(
    experiment: ExperimentOut, seed: int, stages: list[StageOut], failed: Collection[tuple[str, int]]
) -> SeedRows:
    steps_by_arm: dict[str, list[Step]] = {}
    for stage in (s for s in stages if s.seed == seed):
        arm = SHARED if stage.arm in (None, "attack") else str(stage.arm)
        steps_by_arm.setdefault(arm, []).append(
            Step(stage.kind, _state(experiment, stage, (arm, seed) in failed))
        )
    states = [step.state for steps in steps_by_arm.values() for step in steps]
    rows = [Row(arm, steps) for arm, steps in steps_by_arm.items()]
    return SeedRows(seed, states.count("done"), len(states), rows)


def _state(experiment: ExperimentOut, stage: StageOut, failed: bool) -> State:
    if failed:
        return "done" if stage.cached else "failed"
    if stage.cached or experiment.status == "succeeded":  # its stages may have been pruned since
        return "done"
    now = experiment.progress
    current = (now.stage, now.arm, now.seed)
    if experiment.status == "running" and current == (stage.kind, stage.arm, stage.seed):
        return "running"
    return "pending" if experiment.status in ("queued", "running") else "skipped"
