"""I-BAU (Zeng et al. 2022): adversarial unlearning of backdoors by implicit hypergradient.

``min_theta max_|delta|<=C E[L(f(x + delta), y)]`` with one perturbation delta for all images (equation 1): the worst
delta resembles the trigger, and the model is trained to predict true labels in spite of it. Because delta depends on
theta, the gradient has an implicit part, which is computed by a fixed-point iteration (algorithm 1).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.repair import IBau
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import copy_network, finish_repair, load_network, small_set_recipe
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, constant

PENALTY = 0.001  # of the perturbation's squared norm, in the inner objective (authors' code)
MAP_STEP = 0.1  # step of the fixed-point map (authors' code)


def inner_loss(network: Network, x: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """The inner objective: minus the loss under ``delta`` ``[1, C, H, W]``, plus the penalty."""
    return -F.cross_entropy(network(x + delta).float(), labels) + PENALTY * delta.square().sum()


def worst_perturbation(spec: IBau, network: Network, inputs: Tensor, batch_size: int) -> Tensor:
    """Gradient ascent from zero over one pass of the clean images, then projection onto the l2 ball.

    The labels are the network's own predictions, as in the authors' code.
    """
    network.eval()
    delta = torch.zeros_like(inputs[:1])
    for x in inputs.split(batch_size):
        with torch.no_grad():
            predictions = network(x).argmax(1)
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(inner_loss(network, x, predictions, delta), delta)
        delta = (delta - spec.perturbation_learning_rate * gradient).detach()
    return delta * min(1.0, spec.radius / max(float(delta.norm()), 1e-12))


def hypergradient_objective(spec: IBau, memory: dict[str, Tensor]) -> Objective:
    """A scalar whose gradient with respect to the weights is the hypergradient.

    It is the loss of a batch in which a share of the images has delta added, plus ``<v, map(delta)>`` with constant
    v, the solution of ``v = v d map / d delta + d loss / d delta``. Batch normalization uses its running statistics.
    """

    def objective(network: Network, batch: Batch) -> Tensor:
        network.eval()
        delta = memory["delta"].detach().clone().requires_grad_()
        count = max(1, int(spec.perturbed_share * len(batch.x)))
        order = torch.randperm(len(batch.x), device=batch.x.device, generator=batch.generator)
        perturbed = torch.zeros(len(batch.x), 1, 1, 1, device=batch.x.device)
        perturbed[order[:count]] = 1
        loss = F.cross_entropy(network(batch.x + perturbed * delta).float(), batch.labels)
        (direct,) = torch.autograd.grad(loss, delta, retain_graph=True)
        (gradient,) = torch.autograd.grad(
            inner_loss(network, batch.x, batch.labels, delta), delta, create_graph=True
        )
        mapped = delta - MAP_STEP * gradient
        # Fixed-point iteration for v; each step is a vector-Jacobian product of the map.
        v = torch.zeros_like(delta)
        for _ in range(spec.fixed_point_steps):
            (product,) = torch.autograd.grad(mapped, delta, grad_outputs=v, retain_graph=True)
            v = product + direct
        implicit = (v * mapped).sum()
        return loss + implicit - implicit.detach()  # adds the implicit gradient, and zero to the value

    return objective


def run(spec: IBau, lab: RepairDefense) -> Network:
    """Alternate perturbation and unlearning, one round per epoch."""
    fit = lab.clean.fit

    def unlearn(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        recipe = small_set_recipe(
            lab, len(fit), epochs=spec.rounds, learning_rate=spec.learning_rate, schedule=constant
        )
        recipe = replace(recipe, augment=NO_AUGMENT, objective=hypergradient_objective(spec, recipe.memory))
        recipe.optimizer = lambda parameters, recipe: torch.optim.Adam(parameters, lr=recipe.learning_rate)
        inputs = lab.compute.to_input(fit.images)

        def update_perturbation(network: Network, epoch: int = 0) -> dict[str, float]:
            recipe.memory["delta"] = worst_perturbation(spec, network, inputs, recipe.batch_size)
            return {"perturbation_norm": float(recipe.memory["delta"].norm())}

        update_perturbation(network)
        lab.fit_on(stage, network, fit, recipe, after_epoch=update_perturbation)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", unlearn))
