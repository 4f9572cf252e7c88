"""Mode Connectivity Repair (Zhao et al. 2020).

The victim and a fine-tuned copy of it are connected by a curve in weight space along which the loss on clean data is
low, while the attack success rate falls. The repaired model is a point on that curve. The curve is the quadratic Bezier
curve of Garipov et al. (2018) with one trained control point, the bend; its ends are fixed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from app.specs.defenses.repair import Mcr
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.repair import (
    copy_network,
    fine_tune,
    finish_repair,
    load_network,
    refresh_statistics,
    small_set_recipe,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective

Weights = dict[str, Tensor]


def bezier_point(first: Weights, bend: Weights, last: Weights, t: Tensor | float) -> Weights:
    """``(1-t)^2 first + 2 t (1-t) bend + t^2 last``, weight by weight."""
    return {
        name: (1 - t) ** 2 * first[name] + 2 * t * (1 - t) * bend[name] + t**2 * last[name] for name in bend
    }


def curve_objective(first: Weights, last: Weights) -> Objective:
    """Cross-entropy at a random point of the curve for each batch; the trained network is the bend."""

    def objective(bend: Network, batch: Batch) -> Tensor:
        t = torch.rand((), device=batch.x.device, generator=batch.generator)
        weights = bezier_point(first, dict(bend.named_parameters()), last, t)
        return F.cross_entropy(functional_call(bend, weights, (batch.x,)).float(), batch.labels)

    return objective


def run(spec: Mcr, lab: RepairDefense) -> Network:
    """Fine-tune the other end, train the bend, and take a point of the curve."""
    fit = lab.clean.fit

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        fine_tune(lab, stage, network, spec.tuning_epochs, spec.tuning_learning_rate)
        return stage.finish(copy_state(network))

    first = _copy_weights(lab.victim)
    tuned = load_network(lab, lab.stage("tuning", tune))
    last = _copy_weights(tuned)

    def bend(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        with torch.no_grad():  # initialized to the middle of the straight line
            for name, parameter in network.named_parameters():
                parameter.copy_((first[name] + last[name]) / 2)
        recipe = small_set_recipe(lab, len(fit), epochs=spec.epochs, learning_rate=spec.learning_rate)
        recipe.objective = curve_objective(first, last)
        lab.fit_on(stage, network, fit, recipe)
        return stage.finish(copy_state(network))

    bent = load_network(lab, lab.stage("curve", bend))

    def repair(stage: StageRun) -> Outcome:
        network = copy_network(lab, tuned)
        with torch.no_grad():
            for name, tensor in bezier_point(first, _copy_weights(bent), last, spec.point).items():
                network.get_parameter(name).copy_(tensor)
        # Running statistics are not interpolated: they are recomputed for these weights.
        refresh_statistics(network, fit.images, lab.compute)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", repair))


def _copy_weights(network: Network) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
