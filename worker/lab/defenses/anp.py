"""Adversarial Neuron Pruning (Wu and Wang 2021).

Under small perturbations of its neurons a backdoored network predicts the target class, and the neurons responsible are
those of the backdoor. Every neuron (a channel of a batch normalization) gets a mask in [0, 1]; the masks minimize
``alpha L(mask) + (1 - alpha) max_noise L(mask, noise)`` on clean data (equation 6). Neurons with low masks are pruned.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from app.specs.defenses.repair import Anp
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import copy_network, finish_repair, load_network, small_set_recipe
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, constant

ROUNDS = 20  # epochs that the steps are divided into, for the curves
MAX_MEASUREMENTS = 50  # of accuracy while pruning, approximately


class MaskedNetwork(Network):
    """A frozen network whose batch normalizations' scales are multiplied by trained masks."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.mean.shape[1])
        self.network = network.requires_grad_(False)
        self.layers = batch_norm_names(network)
        self.masks = nn.ParameterList(
            torch.ones_like(network.get_parameter(f"{name}.weight")) for name in self.layers
        )

    def forward(
        self, x: Tensor, noise: list[Tensor] | None = None, bias_noise: list[Tensor] | None = None
    ) -> Tensor:
        """Logits with scale ``weight (mask + noise)`` and shift ``bias (1 + bias_noise)``, as in the authors' code."""
        changed = {}
        for i, name in enumerate(self.layers):
            factor = self.masks[i] if noise is None else self.masks[i] + noise[i]
            shift = 1.0 if bias_noise is None else 1 + bias_noise[i]
            changed[f"{name}.weight"] = self.network.get_parameter(f"{name}.weight") * factor
            changed[f"{name}.bias"] = self.network.get_parameter(f"{name}.bias") * shift
            # Copies, so that training does not change the victim's running statistics.
            for statistic in ("running_mean", "running_var"):
                changed[f"{name}.{statistic}"] = self.network.get_buffer(f"{name}.{statistic}").clone()
        logits: Tensor = functional_call(self.network, changed, (x,))
        return logits


class ClampedSgd(torch.optim.SGD):
    """SGD that clips its parameters to [0, 1] after each step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss: Tensor | None = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.clamp_(0, 1)
        return loss


def batch_norm_names(network: Network) -> list[str]:
    """Names of the batch normalizations, first to last."""
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]


def anp_objective(spec: Anp) -> Objective:
    """Equation 6; the inner maximum by one signed gradient step from a random start, clipped to epsilon."""

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
        worst = [
            (part.detach() + spec.epsilon * g.sign()).clamp(-spec.epsilon, spec.epsilon)
            for part, g in zip(noise, gradients, strict=True)
        ]
        plain = F.cross_entropy(masked(batch.x).float(), batch.labels)
        return spec.alpha * plain + (1 - spec.alpha) * loss(worst)

    return objective


def run(spec: Anp, lab: RepairDefense) -> Network:
    """Optimize the masks, then prune."""
    fit = lab.clean.fit

    def optimize(stage: StageRun) -> Outcome:
        masked = MaskedNetwork(copy_network(lab, lab.victim)).to(lab.compute.device)
        recipe = small_set_recipe(
            lab, len(fit), epochs=ROUNDS, learning_rate=spec.learning_rate, schedule=constant
        )
        # The small clean set is repeated within an epoch, so that the steps are divided evenly over the rounds.
        batches = math.ceil(len(fit) / recipe.batch_size)
        rounds = min(ROUNDS, math.ceil(spec.steps / batches))
        rows = torch.arange(len(fit), device=fit.labels.device).repeat(
            max(1, round(spec.steps / (rounds * batches)))
        )
        recipe = replace(recipe, epochs=rounds, weight_decay=0.0, objective=anp_objective(spec))
        recipe.optimizer = lambda parameters, recipe: ClampedSgd(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum
        )
        lab.fit_on(stage, masked, fit, recipe, rows=rows)
        return stage.finish({"masks": torch.cat([mask.detach() for mask in masked.masks])})

    masks = lab.stage("masks", optimize).tensors["masks"]
    return load_network(lab, lab.stage("repair", lambda stage: prune_neurons(spec, lab, stage, masks)))


def prune_neurons(spec: Anp, lab: RepairDefense, stage: StageRun, masks: Tensor) -> Outcome:
    """Zero the scales with masks below the threshold, lowest first, until held-out accuracy falls too far."""
    order = masks.argsort(stable=True)[: int((masks < spec.threshold).sum())].tolist()
    floor = accuracy(lab.victim, lab.clean.held_out, lab.compute) - spec.max_accuracy_drop
    network = copy_network(lab, lab.victim)
    scales = [network.get_parameter(f"{name}.weight") for name in batch_norm_names(network)]
    positions = [(i, j) for i, scale in enumerate(scales) for j in range(len(scale))]
    count, group = 0, max(1, len(order) // MAX_MEASUREMENTS)
    while count < len(order):
        group_positions = [positions[k] for k in order[count : count + group]]
        before = [scales[i][j].item() for i, j in group_positions]
        _set_scales(scales, group_positions, [0.0] * len(group_positions))
        if accuracy(network, lab.clean.held_out, lab.compute) < floor:
            _set_scales(scales, group_positions, before)
            break
        count += len(group_positions)
    if count == 0:
        lab.warn(stage, "no neuron was pruned: none has a low mask, or the first one costs too much accuracy")
    return finish_repair(
        lab, stage, network, lab.clean, pruned=count, neurons=len(masks), below_threshold=len(order)
    )


@torch.no_grad()
def _set_scales(scales: list[nn.Parameter], positions: list[tuple[int, int]], values: list[float]) -> None:
    for (i, j), value in zip(positions, values, strict=True):
        scales[i][j] = value
