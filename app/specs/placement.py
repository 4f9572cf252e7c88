"""Which kind of worker an experiment goes to. Pure; API, relay and workers decide by the same rules.

There are two kinds, each with a queue of its name: `GPU` and `CPU`. A spec with the device ``cuda`` needs a GPU; one
with ``cpu`` is better off without. ``auto`` is resolved here: what `LIGHT` names is trained in a minute on a CPU and
leaves the GPUs to the rest; everything else rather goes to a GPU. A wish gives way where only workers of the other kind
are there, so one machine of whatever kind runs everything that it can.

None of this decides numbers: a stage's key knows nothing of it.
"""

from collections.abc import Collection, Iterable

from app.specs.experiment import ExperimentSpec

GPU, CPU = "gpu", "cpu"
KINDS = (GPU, CPU)
NEEDS_GPU, RATHER_GPU, RATHER_CPU = "needs_gpu", "rather_gpu", "rather_cpu"
PLACEMENTS = (NEEDS_GPU, RATHER_GPU, RATHER_CPU)
LIGHT = ("digits", "small_cnn")
"""Data set and model of which ``auto`` rather takes a CPU."""


def placement_of(spec: ExperimentSpec) -> str:
    """Where the experiment belongs: one of `PLACEMENTS`."""
    match spec.device:
        case "cuda":
            return NEEDS_GPU
        case "cpu":
            return RATHER_CPU
        case _:
            return RATHER_CPU if (spec.dataset.name, spec.model.name) == LIGHT else RATHER_GPU


def queue_of(placement: str, live: Collection[str], *, gpu_on_demand: bool = False) -> str:
    """The queue of an experiment while there are workers of the kinds ``live``.

    ``gpu_on_demand``: workers with a GPU are started once work waits for them, so what rather has one waits for it.
    """
    if placement == NEEDS_GPU:
        return GPU
    wish, other = (GPU, CPU) if placement == RATHER_GPU else (CPU, GPU)
    if wish in live or other not in live or (wish == GPU and gpu_on_demand):
        return wish
    return other


def accepted(serves: Iterable[str], live: Collection[str], *, gpu_on_demand: bool = False) -> list[str]:
    """The placements that a worker of the kinds ``serves`` may take while ``live`` are there."""
    mine = set(serves)
    return [p for p in PLACEMENTS if queue_of(p, {*live, *mine}, gpu_on_demand=gpu_on_demand) in mine]
