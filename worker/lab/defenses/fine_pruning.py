"""Fine-Pruning (Liu et al. 2018).

A backdoor uses neurons that are dormant on clean images. Channels of the last convolution are pruned, the least active
first, until clean accuracy falls (section 4.1); fine-tuning restores the accuracy (section 4.2).
"""

import torch
from torch import Tensor

from app.specs.defenses.repair import FinePruning
from worker.lab.data.datasets import Split
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network
from worker.lab.evaluation import accuracy, extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: FinePruning, lab: RepairDefense) -> Network:
    """Prune, then fine-tune."""
    pruned = lab.stage("pruning", lambda stage: prune_channels(spec, lab, stage))

    def tune(stage: StageRun) -> Outcome:
        network = load_network(lab, pruned)
        if spec.epochs:
            fine_tune(lab, stage, network, spec.epochs, spec.learning_rate)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))


def prune_channels(spec: FinePruning, lab: RepairDefense, stage: StageRun) -> Outcome:
    """Prune as many of the least active channels as the bound on held-out accuracy allows.

    A channel is pruned by zeroing the head's weights for it. That equals zeroing its activation, since the head is
    linear in the pooled last feature map. Fine-tuning may use the channel again, as in the paper.
    """
    network = copy_network(lab, lab.victim)
    activity = extract_features(network, lab.clean.fit.images, lab.compute).mean(0)
    order = activity.argsort(stable=True)
    count = count_prunable(network, order, lab, spec.max_accuracy_drop)
    disconnect_channels(network, order[:count])
    if count == 0:
        lab.warn(stage, "no channel could be pruned within the bound; only fine-tuning was done")
    lab.recorder.log(f"pruned {count} of {len(order)} channels")
    return stage.finish(copy_state(network))


def count_prunable(network: Network, order: Tensor, lab: RepairDefense, max_drop: float) -> int:
    """How many channels, in ``order``, can be pruned before held-out accuracy falls by more than ``max_drop``.

    The last one is never pruned.
    """
    held_out: Split = lab.clean.held_out
    floor = accuracy(network, held_out, lab.compute) - max_drop
    trial = copy_network(lab, network)
    for count in range(1, len(order)):
        disconnect_channels(trial, order[count - 1 : count])
        if accuracy(trial, held_out, lab.compute) < floor:
            return count - 1
    return len(order) - 1


@torch.no_grad()
def disconnect_channels(network: Network, channels: Tensor) -> None:
    """Zero the head's weights for ``channels`` of the last feature map."""
    network.head.weight[:, channels] = 0
