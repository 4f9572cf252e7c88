"""I-BAU (Zeng et al. 2022): adversarial unlearning of backdoors by implicit hypergradient.

``min_theta max_|delta|<=C E[L(f(x + delta), y)]`` with one perturbation delta for all images (equation 1): the worst
delta resembles the trigger, and the model is trained to predict true labels in spite of it. Because delta depends on
theta, the gradient has an implicit part, which is computed by a fixed-point iteration (algorithm 1).
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.specs.defenses.repair import IBau
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import (
    copy_network,
    divide_steps,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, constant

PENALTY = 0.001  # of the perturbation's squared norm, in the inner objective (authors' code)
MAP_STEP = 0.1  # step of the fixed-point map (authors' code)


def inner_loss(network: Network, x: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """The inner objective: minus the loss under ``delta`` ``[1, C, H, W]``, plus the penalty."""
    return -F.cross_entropy(network(x + delta).float(), labels) + PENALTY * delta.square().sum()


def worst_perturbation(spec: IBau, network: Network, batches: Iterable[Tensor]) -> Tensor:
    """Gradient ascent from zero over batches of clean images, then projection onto the l2 ball if there is a radius.

    The labels are the network's own predictions, as in the authors' defense.py.
    """
    network.eval()
    delta: Tensor | None = None
    for x in batches:
        if delta is None:
            delta = torch.zeros_like(x[:1])
        with torch.no_grad():
            predictions = network(x).argmax(1)
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(inner_loss(network, x, predictions, delta), delta)
        delta = (delta - spec.perturbation_learning_rate * gradient).detach()
    assert delta is not None
    return delta if spec.radius is None else delta * min(1.0, spec.radius / max(float(delta.norm()), 1e-12))


def hypergradient_objective(spec: IBau, memory: dict[str, Tensor]) -> Objective:
    """A scalar whose gradient with respect to the weights is the hypergradient.

    It is the loss of a batch in which a share of the images has delta added, plus ``<v, map(delta)>`` with constant
    v, the solution of ``v = v d map / d delta + d loss / d delta``. Batch normalization uses its running statistics.
    """

    @sdpa_kernel(SDPBackend.MATH)  # faster kernels of attention have no second derivative
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
            lab,
            len(fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            schedule=constant,
            batch_size=spec.batch_size,
            weight_decay=0.0,
        )
        recipe.objective = hypergradient_objective(spec, recipe.memory)
        recipe.optimizer = lambda parameters, recipe: torch.optim.Adam(
            parameters, lr=recipe.learning_rate, amsgrad=spec.amsgrad
        )
        if not spec.augmentation:
            recipe.augment = NO_AUGMENT
        _, repeats = divide_steps(spec.steps, math.ceil(len(fit) / recipe.batch_size), spec.rounds)

        def clean_batches() -> Iterator[Tensor]:
            for _ in range(repeats):
                yield from map(lab.compute.to_input, fit.images.split(recipe.batch_size))

        def update_perturbation(network: Network, epoch: int = 0) -> dict[str, float]:
            recipe.memory["delta"] = worst_perturbation(spec, network, clean_batches())
            return {"perturbation_norm": float(recipe.memory["delta"].norm())}

        update_perturbation(network)
        train_steps(
            lab, stage, network, recipe, spec.steps, epochs=spec.rounds, after_epoch=update_perturbation
        )
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", unlearn))
