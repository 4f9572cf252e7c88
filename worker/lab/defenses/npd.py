"""Neural polarizer (Zhu et al. 2023): a layer inside the victim that filters the trigger's features.

The victim stays as it is. A 1x1 convolution with batch normalization before one of its last layers is trained so that
clean images keep their predictions, and images with a perturbation that leads the network to another class get theirs
back. The steps are those of BackdoorBench's defense/npd.py, which is the authors' implementation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.unlearning import Npd
from worker.lab.defenses.base import RepairDefense, copy_state, load_state
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    plain_sgd,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.networks.polarized import PolarizedNetwork
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, Recipe, constant

STEP = 0.1  # of the perturbation, signed (args.adv_lr)
ENOUGH = 0.6  # share of a batch that its perturbation has to lead to its targets
SAFE = 1.0001  # from which a probability is subtracted before its logarithm is taken


def run(spec: Npd, lab: RepairDefense) -> Network:
    """Warm the layer up on clean images, then train it against perturbations."""

    def warm_up(stage: StageRun) -> Outcome:
        network = PolarizedNetwork(copy_network(lab, lab.victim)).to(lab.compute.device)
        recipe = polarizer_recipe(spec, lab, spec.warm_up_learning_rate)
        recipe.momentum, recipe.weight_decay = 0.0, 0.0
        recipe.objective = warm_up_objective
        train_polarizer(lab, stage, network, recipe, spec.warm_up_steps)
        return stage.finish(copy_state(network))

    warm = lab.stage("warm_up", warm_up)

    def train(stage: StageRun) -> Outcome:
        network = load_polarized(lab, warm)
        recipe = polarizer_recipe(spec, lab, spec.learning_rate)
        recipe.objective = polarizing_objective(spec)
        train_polarizer(lab, stage, network, recipe, spec.steps)
        return finish_repair(lab, stage, network, lab.clean)

    return load_polarized(lab, lab.stage("repair", train))


def load_polarized(lab: RepairDefense, outcome: Outcome) -> PolarizedNetwork:
    """The network that a stage stored."""
    network = PolarizedNetwork(lab.new_network("repair"))
    load_state(network, outcome.tensors, lab.compute.device)
    return network


def polarizer_recipe(spec: Npd, lab: RepairDefense, learning_rate: float) -> Recipe:
    """SGD at a constant rate on images that are not augmented."""
    recipe = small_set_recipe(
        lab,
        len(lab.clean.fit),
        epochs=1,
        learning_rate=learning_rate,
        schedule=constant,
        batch_size=spec.batch_size,
        weight_decay=spec.weight_decay,
    )
    recipe.optimizer = plain_sgd
    recipe.augment = NO_AUGMENT
    return recipe


def train_polarizer(
    lab: RepairDefense, stage: StageRun, network: PolarizedNetwork, recipe: Recipe, steps: int
) -> None:
    """Train the layer alone."""
    network.network.requires_grad_(False)
    train_steps(lab, stage, network, recipe, steps)


def warm_up_objective(network: Network, batch: Batch) -> Tensor:
    """Cross-entropy; only the layer's own normalization uses and collects statistics of the batch."""
    assert isinstance(network, PolarizedNetwork)
    network.network.eval()
    return F.cross_entropy(network(batch.x).float(), batch.labels)


def find_targets(logits: Tensor, labels: Tensor) -> Tensor:
    """The most likely class ``[B]`` beside the true one."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def perturb(network: Network, x: Tensor, targets: Tensor, radius: float, steps: int) -> Tensor:
    """Images that a few signed steps within the l2 ball of ``radius`` have led towards ``targets``; in [0, 1].

    It ends early once enough of the batch is classified as its target.
    """
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(network((x + delta).clamp(0, 1)).float(), targets)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() - STEP * gradient.sign()
        norms = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        delta = delta * (radius / norms).clamp(max=1)[:, None, None, None]
        with torch.no_grad():
            reached = network((x + delta).clamp(0, 1)).argmax(1) == targets
        if reached.float().mean() > ENOUGH:
            break
    return (x + delta).clamp(0, 1)


def avoidance(logits: Tensor, classes: Tensor) -> Tensor:
    """The mean of ``-log(1 - p)``, ``p`` each image's probability of one of the ``classes`` ``[B]``."""
    p = logits.softmax(1).gather(1, classes[:, None]).squeeze(1)
    return -(SAFE - p + 1e-12).log().mean()


def polarizing_objective(spec: Npd) -> Objective:
    """Cross-entropy on clean images, and three losses on perturbed ones (their loss_2, loss_3, loss_4).

    These have the network's prediction for the clean image as label, and avoid the most likely wrong class and the
    perturbation's target. Batch normalizations use their running statistics.
    """

    def objective(network: Network, batch: Batch) -> Tensor:
        network.eval()
        with torch.no_grad():
            before = network(batch.x).float()
        targets = find_targets(before, batch.labels)
        perturbed = perturb(network, batch.x, targets, spec.radius, spec.attack_steps)
        clean = F.cross_entropy(network(batch.x).float(), batch.labels)
        logits = network(perturbed).float()
        wrong = find_targets(logits.detach(), batch.labels)
        adversarial = F.cross_entropy(logits, before.argmax(1)) + avoidance(logits, wrong)
        return clean + spec.adversarial_weight * (adversarial + avoidance(logits, targets))

    return objective
