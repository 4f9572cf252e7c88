"""Mode Connectivity Repair (Zhao et al. 2020).

Between the victim and a fine-tuned copy of it runs a curve in weight space along which clean loss stays low, while the
backdoor, which clean data do not hold in place, gives way. The repaired model is a point on that curve.
The curve is Garipov et al.'s (2018) quadratic Bezier curve with one trained bend; the ends stay fixed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from app.specs.defenses.repair import Mcr
from worker.lab.defenses.base import RepairDefense, state
from worker.lab.defenses.repair import (
    copy_of,
    fine_tune,
    network_of,
    refresh_statistics,
    repaired,
    small_set_recipe,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, to_input

Weights = dict[str, Tensor]


def bezier(first: Weights, bend: Weights, last: Weights, t: Tensor | float) -> Weights:
    """``(1-t)^2 first + 2 t (1-t) bend + t^2 last``, weight by weight."""
    return {
        name: (1 - t) ** 2 * first[name] + 2 * t * (1 - t) * bend[name] + t**2 * last[name] for name in bend
    }


def on_the_curve(first: Weights, last: Weights) -> Objective:
    """Cross-entropy at a point of the curve drawn anew for each batch; the network trained is the bend."""

    def objective(bend: Network, batch: Batch) -> Tensor:
        t = torch.rand((), device=batch.x.device, generator=batch.drawn)
        weights = bezier(first, dict(bend.named_parameters()), last, t)
        return F.cross_entropy(functional_call(bend, weights, (batch.x,)).float(), batch.labels)

    return objective


def run(spec: Mcr, lab: RepairDefense) -> Network:
    """Make the far end, train the bend, and take the point."""
    fit = lab.clean.fit

    def tune(stage: StageRun) -> Outcome:
        network = copy_of(lab, lab.victim)
        fine_tune(lab, stage, network, spec.tuning_epochs, spec.tuning_learning_rate)
        return stage.finish(state(network))

    first = _weights(lab.victim)
    tuned = network_of(lab, lab.stage("tuning", tune))
    last = _weights(tuned)

    def bend(stage: StageRun) -> Outcome:
        network = copy_of(lab, lab.victim)
        with torch.no_grad():  # the straight line's middle is where the curve starts
            for name, parameter in network.named_parameters():
                parameter.copy_((first[name] + last[name]) / 2)
        recipe = small_set_recipe(lab, len(fit), epochs=spec.epochs, learning_rate=spec.learning_rate)
        recipe.objective = on_the_curve(first, last)
        lab.fit_on(stage, network, fit, recipe)
        return stage.finish(state(network))

    bent = network_of(lab, lab.stage("curve", bend))

    def take(stage: StageRun) -> Outcome:
        network = copy_of(lab, tuned)
        with torch.no_grad():
            for name, tensor in bezier(first, _weights(bent), last, spec.point).items():
                network.get_parameter(name).copy_(tensor)
        # No network of the curve ever saw the images with these weights, so its statistics are made anew.
        refresh_statistics(network, fit.images, lambda images: to_input(images, stage))
        return repaired(lab, stage, network, lab.clean)

    return network_of(lab, lab.stage("repair", take))


def _weights(network: Network) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
