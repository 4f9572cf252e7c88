"""Adversarial Neuron Pruning (Wu and Wang 2021).

Under small perturbations of its neurons a backdoored network predicts the target class, and the neurons responsible are
those of the backdoor. Every neuron (a channel of a batch normalization) gets a mask in [0, 1]; the masks minimize
``alpha L(mask) + (1 - alpha) max_noise L(mask, noise)`` on clean data (equation 6). Neurons with low masks are pruned.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from app.specs.defenses.repair import Anp
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, constant

THRESHOLDS = [round(0.05 * i, 2) for i in range(19)]  # 0 to 0.9, as in the authors' prune_neuron_cifar.py


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
        masked = MaskedNetwork(copy_network(lab, lab.victim)).to(lab.compute.device)
        recipe = small_set_recipe(
            lab,
            len(lab.clean.fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            schedule=constant,
            batch_size=spec.batch_size,
            weight_decay=0.0,
        )
        recipe.objective = anp_objective(spec)
        recipe.optimizer = lambda parameters, recipe: ClampedSgd(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum
        )
        train_steps(lab, stage, masked, recipe, spec.steps)
        return stage.finish({"masks": torch.cat([mask.detach() for mask in masked.masks])})

    masks = lab.stage("masks", optimize).tensors["masks"]
    return load_network(lab, lab.stage("repair", lambda stage: prune_neurons(spec, lab, stage, masks)))


def prune_neurons(spec: Anp, lab: RepairDefense, stage: StageRun, masks: Tensor) -> Outcome:
    """Zero the scales of all neurons with masks up to a threshold: the given one, or the largest within the bound.

    Every threshold of the sweep is tried (the authors' prune_neuron_cifar.py, evaluate_by_threshold), because accuracy
    does not fall steadily. BackdoorBench keeps, of those within the bound, the one of least attack success on test
    images (defense/anp.py), which a defender does not have.
    """
    held_out = lab.clean.held_out
    before = accuracy(lab.victim, held_out, lab.compute)
    chosen = spec.threshold
    for threshold in THRESHOLDS:
        network = pruned_network(lab, masks, threshold)
        after = accuracy(network, held_out, lab.compute)
        pruned = int((masks <= threshold).sum())
        lab.record_sweep(stage, network, threshold=threshold, pruned=pruned, held_out_accuracy=after)
        if spec.threshold is None and before - after < spec.max_accuracy_drop * before:
            chosen = threshold
    network = copy_network(lab, lab.victim) if chosen is None else pruned_network(lab, masks, chosen)
    count = 0 if chosen is None else int((masks <= chosen).sum())
    if count == 0:
        lab.warn(stage, "no neuron was pruned: none has a low mask, or pruning costs too much accuracy")
    return finish_repair(lab, stage, network, lab.clean, threshold=chosen, pruned=count, neurons=len(masks))


@torch.no_grad()
def pruned_network(lab: RepairDefense, masks: Tensor, threshold: float) -> Network:
    """The victim without the neurons whose masks are at most ``threshold``."""
    network = copy_network(lab, lab.victim)
    scales = [network.get_parameter(f"{name}.weight") for name in batch_norm_names(network)]
    masks = masks.to(scales[0].device)
    for scale, own in zip(scales, masks.split([len(scale) for scale in scales]), strict=True):
        scale[own <= threshold] = 0.0
    return network
