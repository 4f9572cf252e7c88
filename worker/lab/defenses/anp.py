"""Adversarial Neuron Pruning (Wu and Wang 2021).

Under small perturbations of its neurons a backdoored network predicts the target class, and the neurons responsible are
those of the backdoor. Every neuron (a channel of a batch normalization) gets a mask in [0, 1]; the masks minimize
``alpha L(mask) + (1 - alpha) max_noise L(mask, noise)`` on clean data (equation 6). Neurons with low masks are pruned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.repair import Anp
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.neurons import MaskedNetwork, prune_low_masks, train_masks
from worker.lab.defenses.repair import copy_network, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective


def anp_objective(spec: Anp) -> Objective:
    """Equation 6; the inner maximum by one signed gradient step of length epsilon from a random start.

    The result is not clipped to epsilon, as in the authors' optimize_mask_cifar.py (mask_train).
    """

    def objective(masked: Network, batch: Batch) -> Tensor:
        assert isinstance(masked, MaskedNetwork)
        shapes = [*masked.masks, *masked.masks]
        start = [
            (torch.rand(mask.shape, device=mask.device, generator=batch.generator) * 2 - 1) * spec.epsilon
            for mask in shapes
        ]
        noise = [part.requires_grad_() for part in start]
        half = len(masked.masks)

        def loss(noise: list[Tensor]) -> Tensor:
            return F.cross_entropy(masked(batch.x, noise[:half], noise[half:]).float(), batch.labels)

        gradients = torch.autograd.grad(loss(noise), noise)
        worst = [part.detach() + spec.epsilon * g.sign() for part, g in zip(noise, gradients, strict=True)]
        plain = F.cross_entropy(masked(batch.x).float(), batch.labels)
        return spec.alpha * plain + (1 - spec.alpha) * loss(worst)

    return objective


def run(spec: Anp, lab: RepairDefense) -> Network:
    """Optimize the masks, then prune."""

    def optimize(stage: StageRun) -> Outcome:
        return train_masks(
            lab,
            stage,
            copy_network(lab, lab.victim),
            anp_objective(spec),
            steps=spec.steps,
            batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
        )

    masks = lab.stage("masks", optimize).tensors["masks"]

    def prune(stage: StageRun) -> Outcome:
        return prune_low_masks(lab, stage, masks, spec.threshold, spec.max_accuracy_drop)

    return load_network(lab, lab.stage("repair", prune))
