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
    plain_sgd,
    refresh_statistics,
    small_set_recipe,
    train_steps,
)
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, cosine

Weights = dict[str, Tensor]
POINTS = 11  # of the curve, which are measured


def bezier_point(first: Weights, bend: Weights, last: Weights, t: Tensor | float) -> Weights:
    """``(1-t)^2 first + 2 t (1-t) bend + t^2 last``, weight by weight."""
    return {
        name: (1 - t) ** 2 * first[name] + 2 * t * (1 - t) * bend[name] + t**2 * last[name] for name in bend
    }


def piecewise(share: float) -> float:
    """The authors' schedule (train.py, learning_rate_schedule): 1, from 1/2 to 9/10 linear to 0.01, then 0.01."""
    return 1.0 - min(max((share - 0.5) / 0.4, 0.0), 1.0) * 0.99


def curve_objective(first: Weights, last: Weights, weight_decay: float) -> Objective:
    """Cross-entropy at a random point of the curve for each batch; the trained network is the bend.

    As in the authors' code (curves.py, l2_regularizer), the weights of that point are regularized, not the bend's.
    """

    def objective(bend: Network, batch: Batch) -> Tensor:
        t = torch.rand((), device=batch.x.device, generator=batch.generator)
        weights = bezier_point(first, dict(bend.named_parameters()), last, t)
        loss = F.cross_entropy(functional_call(bend, weights, (batch.x,)).float(), batch.labels)
        return loss + 0.5 * weight_decay * torch.stack([w.square().sum() for w in weights.values()]).sum()

    return objective


def run(spec: Mcr, lab: RepairDefense) -> Network:
    """Fine-tune the other end, train the bend, and take a point of the curve."""
    fit = lab.clean.fit

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        fine_tune(
            lab,
            stage,
            network,
            spec.tuning_steps,
            spec.tuning_learning_rate,
            batch_size=spec.batch_size,
            weight_decay=spec.tuning_weight_decay,
        )
        return stage.finish(copy_state(network))

    first = _copy_weights(lab.victim)
    tuned = load_network(lab, lab.stage("tuning", tune))
    last = _copy_weights(tuned)

    def bend(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        with torch.no_grad():  # initialized to the middle of the straight line
            for name, parameter in network.named_parameters():
                parameter.copy_((first[name] + last[name]) / 2)
        recipe = small_set_recipe(
            lab,
            len(fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            schedule=piecewise if spec.schedule == "piecewise" else cosine,
            batch_size=spec.batch_size,
            weight_decay=spec.weight_decay,
        )
        recipe.objective = curve_objective(first, last, recipe.weight_decay)
        recipe.weight_decay = 0.0
        recipe.optimizer = plain_sgd
        train_steps(lab, stage, network, recipe, spec.steps)
        return stage.finish(copy_state(network))

    bent = load_network(lab, lab.stage("curve", bend))

    def point(t: float) -> Network:
        network = copy_network(lab, tuned)
        with torch.no_grad():
            for name, tensor in bezier_point(first, _copy_weights(bent), last, t).items():
                network.get_parameter(name).copy_(tensor)
        # Running statistics are not interpolated: they are recomputed for these weights.
        refresh_statistics(network, fit.images, lab.compute)
        return network

    def repair(stage: StageRun) -> Outcome:
        for i in range(POINTS):
            t = i / (POINTS - 1)
            network = point(t)
            lab.record_sweep(stage, network, t=t, training_accuracy=accuracy(network, fit, lab.compute))
        return finish_repair(lab, stage, point(spec.point), lab.clean)

    return load_network(lab, lab.stage("repair", repair))


def _copy_weights(network: Network) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
