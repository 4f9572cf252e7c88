"""Where an experiment is among the stages that it is made of."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from app.experiments.schemas import ExperimentOut, StageOut

State = Literal["done", "running", "waiting", "skipped", "failed"]
MOST_SEEDS = 5
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
    """Every arm of one seed; the first row is what the arms share."""

    seed: int
    done: int
    total: int
    rows: list[Row]


def timeline(
    experiment: ExperimentOut, stages: list[StageOut], failed: Collection[tuple[str, int]] = ()
) -> list[SeedRows]:
    """The ``stages`` of the experiment, by seed and arm, with the state that each is in; ``failed`` arms have an error.

    Of many seeds the first `MOST_SEEDS` from the one at work are shown.
    """
    seeds = list(experiment.spec["seeds"])
    at = experiment.progress.seed if experiment.status == "running" else None
    first = min(seeds.index(at), max(0, len(seeds) - MOST_SEEDS)) if at in seeds else 0
    return [_of_seed(experiment, seed, stages, failed) for seed in seeds[first : first + MOST_SEEDS]]


def _of_seed(
    experiment: ExperimentOut, seed: int, stages: list[StageOut], failed: Collection[tuple[str, int]]
) -> SeedRows:
    rows: dict[str, list[Step]] = {}
    for stage in (s for s in stages if s.seed == seed):
        arm = SHARED if stage.arm in (None, "attack") else str(stage.arm)
        rows.setdefault(arm, []).append(Step(stage.kind, _state(experiment, stage, (arm, seed) in failed)))
    steps = [step for row in rows.values() for step in row]
    done = sum(step.state == "done" for step in steps)
    return SeedRows(seed, done, len(steps), [Row(arm, found) for arm, found in rows.items()])


def _state(experiment: ExperimentOut, stage: StageOut, failed: bool) -> State:
    if failed:
        return "done" if stage.cached else "failed"
    if stage.cached or experiment.status == "succeeded":  # whose stages may have left the cache since
        return "done"
    now = experiment.progress
    if experiment.status == "running" and (now.stage, now.arm, now.seed) == (
        stage.kind,
        stage.arm,
        stage.seed,
    ):
        return "running"
    return "waiting" if experiment.status in ("queued", "running") else "skipped"
