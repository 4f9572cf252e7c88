"""Which kind of worker runs an experiment. The API, the relay and the workers apply the same rules.

There are two kinds of workers, `GPU` and `CPU`, each with a queue of that name. A spec with the device ``cuda`` needs a
GPU, one with ``cpu`` prefers a CPU. With ``auto`` the `LIGHT` dataset and model, which train in a minute on a CPU,
prefer a CPU, and everything else prefers a GPU. A preference, unlike a need, gives way if only workers of the other
kind are running, so that a single machine of either kind runs all that it can.

Placement does not affect results, and it is not part of a stage's key.
"""

from collections.abc import Collection, Iterable

from app.specs.experiment import ExperimentSpec

GPU, CPU = "gpu", "cpu"
KINDS = (GPU, CPU)
NEEDS_GPU, RATHER_GPU, RATHER_CPU = "needs_gpu", "rather_gpu", "rather_cpu"
PLACEMENTS = (NEEDS_GPU, RATHER_GPU, RATHER_CPU)
LIGHT = ("digits", "small_cnn")
"""The dataset and model for which ``auto`` prefers a CPU."""


def placement_of(spec: ExperimentSpec) -> str:
    """The experiment's placement, one of `PLACEMENTS`."""
    match spec.device:
        case "cuda":
            return NEEDS_GPU
        case "cpu":
            return RATHER_CPU
        case _:
            return RATHER_CPU if (spec.dataset.name, spec.model.name) == LIGHT else RATHER_GPU


def choose_queue(placement: str, live: Collection[str], *, gpu_on_demand: bool = False) -> str:
    """The queue for a ``placement`` while workers of the kinds ``live`` are running.

    With ``gpu_on_demand`` GPU workers are started when work is queued for them, so work that prefers a GPU waits for
    one.
    """
    if placement == NEEDS_GPU:
        return GPU
    preferred, other = (GPU, CPU) if placement == RATHER_GPU else (CPU, GPU)
    if preferred in live or other not in live or (preferred == GPU and gpu_on_demand):
        return preferred
    return other


def claimable_placements(
    kinds: Iterable[str], live: Collection[str], *, gpu_on_demand: bool = False
) -> list[str]:
    """The placements that a worker of the ``kinds`` may claim while workers of the kinds ``live`` are running."""
    own = set(kinds)
    return [p for p in PLACEMENTS if choose_queue(p, {*live, *own}, gpu_on_demand=gpu_on_demand) in own]
