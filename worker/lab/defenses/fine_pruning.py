"""Fine-Pruning (Liu et al. 2018).

A backdoor uses neurons that are dormant on clean images. Channels of the last convolution are pruned, the least active
first, until clean accuracy falls (section 4.1); fine-tuning of the others restores the accuracy (section 4.2).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from app.specs.defenses.repair import FinePruning
from worker.lab.data.datasets import Split
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network
from worker.lab.evaluation import accuracy, extract_activity
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe

AT_ONCE = 0.01  # of the channels (BackdoorBench, once_prune_ratio)


def run(spec: FinePruning, lab: RepairDefense) -> Network:
    """Prune, then fine-tune what is left."""
    pruned = lab.stage("pruning", lambda stage: prune_channels(spec, lab, stage))

    def tune(stage: StageRun) -> Outcome:
        network = load_network(lab, pruned)
        if spec.steps:
            fine_tune(
                lab,
                stage,
                network,
                spec.steps,
                spec.learning_rate,
                batch_size=spec.batch_size,
                weight_decay=spec.weight_decay,
                optimizer=partial(MaskedSgd, network=network),
            )
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))


class MaskedSgd(torch.optim.SGD):
    """SGD that keeps pruned channels pruned, as BackdoorBench's defense/fp.py does by a mask on the head's weights."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], recipe: Recipe, network: Network) -> None:
        super().__init__(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.weight = network.prunable_weight
        self.pruned = (self.weight == 0).transpose(0, 1).flatten(1).all(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss: Tensor | None = super().step(closure)
        self.weight[:, self.pruned] = 0
        return loss


def prune_channels(spec: FinePruning, lab: RepairDefense, stage: StageRun) -> Outcome:
    """Prune as many of the least active channels as the bound on held-out accuracy allows.

    A channel is pruned by zeroing the weights that read it, those of the first layer behind the last feature map
    (BackdoorBench, defense/fp.py). Where there is no such map, as in a ViT, these are the inputs of the head.
    """
    network = copy_network(lab, lab.victim)
    activity = extract_activity(network, lab.clean.fit.images, lab.compute).mean(0)
    order = activity.argsort(stable=True)
    count = count_prunable(network, order, lab, stage, spec.max_accuracy_drop)
    disconnect_channels(network, order[:count])
    if count == 0:
        lab.warn(stage, "no channel could be pruned within the bound; only fine-tuning was done")
    lab.recorder.log(f"pruned {count} of {len(order)} channels")
    return stage.finish(copy_state(network))


def count_prunable(
    network: Network, order: Tensor, lab: RepairDefense, stage: StageRun, max_drop: float
) -> int:
    """How many channels, in ``order``, can be pruned before held-out accuracy falls by the share ``max_drop``.

    They are pruned a hundredth of all at a time and at least one, never all, and the first excess ends it
    (BackdoorBench, defense/fp.py). Every step is a row of the stage's sweep.
    """
    held_out: Split = lab.clean.held_out
    before = accuracy(network, held_out, lab.compute)
    trial = copy_network(lab, network)
    lab.record_sweep(stage, trial, pruned=0, held_out_accuracy=before)
    kept = 0
    for count in range(0, len(order), math.ceil(len(order) * AT_ONCE))[1:]:
        disconnect_channels(trial, order[:count])
        after = accuracy(trial, held_out, lab.compute)
        lab.record_sweep(stage, trial, pruned=count, held_out_accuracy=after)
        if before - after >= max_drop * before:
            break
        kept = count
    return kept


@torch.no_grad()
def disconnect_channels(network: Network, channels: Tensor) -> None:
    """Zero the weights that read ``channels`` of the last feature map."""
    network.prunable_weight[:, channels] = 0
