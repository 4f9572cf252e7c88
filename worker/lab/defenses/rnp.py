"""Reconstructive Neuron Pruning (Li et al. 2023): unlearn clean images, recover them with masks, prune.

A copy of the victim is trained to misclassify clean images, which leaves the neurons of the backdoor as they are. Then
only masks on its neurons are trained to classify the images again: those of backdoor neurons get low masks, because
they are in the way. The neurons with low masks are pruned in the victim.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.reconstructive import Rnp
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.neurons import prune_low_masks, train_masks
from worker.lab.defenses.repair import (
    copy_network,
    divide_steps,
    load_network,
    plain_sgd,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, step_down

STEPS = step_down(10 / 21, 20 / 21)  # after 10 and 20 of at most 21 epochs (authors' main.py, schedule)


def ascent_objective(memory: dict[str, Tensor]) -> Objective:
    """Minus the cross-entropy; ``memory["correct"]`` counts the images that are classified correctly."""

    def objective(network: Network, batch: Batch) -> Tensor:
        logits = network(batch.x).float()
        memory["correct"] += (logits.argmax(1) == batch.labels).sum()
        return -F.cross_entropy(logits, batch.labels)

    return objective


def recovery_objective(alpha: float) -> Objective:
    """``alpha`` times the cross-entropy of the masked network (authors' main.py, train_step_recovering)."""

    def objective(masked: Network, batch: Batch) -> Tensor:
        return alpha * F.cross_entropy(masked(batch.x).float(), batch.labels)

    return objective


def unlearn(spec: Rnp, lab: RepairDefense, stage: StageRun) -> Outcome:
    """Ascend on the loss of the clean set until an epoch's accuracy is low, or for a number of steps.

    The authors' code calls a clipping of the gradients, but before they are computed, so nothing is clipped.
    """
    network = copy_network(lab, lab.victim)
    fit = lab.clean.fit
    recipe = small_set_recipe(
        lab,
        len(fit),
        epochs=1,
        learning_rate=spec.unlearning_learning_rate,
        schedule=STEPS,
        batch_size=spec.batch_size,
        weight_decay=spec.weight_decay,
    )
    memory = recipe.memory
    memory["correct"] = torch.zeros((), dtype=torch.int64, device=lab.compute.device)
    memory["accuracy"] = torch.ones((), device=lab.compute.device)
    _, repeats = divide_steps(spec.unlearning_steps, math.ceil(len(fit) / recipe.batch_size))

    def measure(network: Network, epoch: int) -> dict[str, float]:
        memory["accuracy"] = memory["correct"] / (repeats * len(fit))
        memory["correct"] = torch.zeros_like(memory["correct"])
        return {"unlearning_accuracy": float(memory["accuracy"])}

    recipe.objective = ascent_objective(memory)
    recipe.optimizer = plain_sgd
    recipe.stop = lambda: float(memory["accuracy"]) <= spec.unlearned_accuracy
    train_steps(lab, stage, network, recipe, spec.unlearning_steps, after_epoch=measure)
    return stage.finish(copy_state(network))


def run(spec: Rnp, lab: RepairDefense) -> Network:
    """Unlearn, recover, prune."""
    unlearned = lab.stage("clean_unlearning", lambda stage: unlearn(spec, lab, stage))

    def recover(stage: StageRun) -> Outcome:
        return train_masks(
            lab,
            stage,
            load_network(lab, unlearned),
            recovery_objective(spec.alpha),
            steps=spec.recovering_steps,
            batch_size=spec.batch_size,
            learning_rate=spec.recovering_learning_rate,
        )

    masks = lab.stage("masks", recover).tensors["masks"]

    def prune(stage: StageRun) -> Outcome:
        return prune_low_masks(lab, stage, masks, spec.threshold, spec.max_accuracy_drop)

    return load_network(lab, lab.stage("repair", prune))
