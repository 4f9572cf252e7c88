"""Entropy pruning (Zheng et al. 2022b, *Pre-activation Distributions Expose Backdoor Neurons*).

On a mixture of clean and poisoned images the input of a backdoor neuron has two modes that lie far apart, one of each
kind. Scaled to deviation 1, each of them is narrow, so the differential entropy is small. Neither a clean image nor a
label is used, but images of the poisoned set.
"""

import torch
from torch import Tensor

from app.specs.defenses.pruning import Ep
from worker.lab.compute import Compute, seeded_generator
from worker.lab.data.streamed import Images, select_rows
from worker.lab.defenses.base import UnlabeledRepair, copy_state
from worker.lab.defenses.neurons import prune_outliers, report_outliers, watch_pre_activations
from worker.lab.defenses.repair import copy_network, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: Ep, lab: UnlabeledRepair) -> Network:
    """Prune the neurons of least entropy; nothing is trained."""

    def prune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        device = lab.compute.device
        order = torch.randperm(
            len(lab.images), device=device, generator=seeded_generator(device, "entropy", lab.seed)
        )
        peaks = collect_peaks(network, select_rows(lab.images, order[: spec.images]), lab.compute)
        scores = {name: -histogram_entropy(standardize(x), spec.bin_width) for name, x in peaks.items()}
        report_outliers(lab, stage, prune_outliers(network, scores, spec.deviations), scores)
        return stage.finish(copy_state(network))

    return load_network(lab, lab.stage("repair", prune))


def collect_peaks(network: Network, images: Images, compute: Compute) -> dict[str, Tensor]:
    """By the name of each batch normalization the largest input of every channel and image, ``[C, N]``.

    The maximum is over positions (authors' defense.py, BatchNorm2d_ent).
    """
    parts: dict[str, list[Tensor]] = {}
    watch_pre_activations(
        network, images, compute, lambda name, x: parts.setdefault(name, []).append(x.flatten(2).amax(2).T)
    )
    return {name: torch.cat(batches, 1) for name, batches in parts.items()}


def standardize(x: Tensor) -> Tensor:
    """Every row of ``[C, N]`` with mean 0 and deviation 1; zero where it is constant."""
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp(min=1e-12)


def histogram_entropy(x: Tensor, bin_width: float) -> Tensor:
    """The entropy ``[C]``, in nats, of each row of ``[C, N]`` in bins that begin at the least value of all rows.

    The authors' defense.py (batch_entropy_2) leaves out values on the bounds of bins and those above the last whole
    bin; here every value counts.
    """
    bins = ((x - x.min()) / bin_width).long()
    size = int(bins.max()) + 1
    rows = torch.arange(len(x), device=x.device)[:, None]
    counts = torch.bincount((rows * size + bins).flatten(), minlength=len(x) * size).view(len(x), size)
    entropy: Tensor = torch.special.entr(counts / x.shape[1]).sum(1)
    return entropy
