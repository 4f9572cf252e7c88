"""Neurons, the channels of batch normalizations: masks on them, and pruning.

A neuron is pruned by setting the scale of its channel to zero, so that it is the same for every input.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from worker.lab.compute import Compute
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import DataFreeRepair, RepairDefense
from worker.lab.defenses.repair import copy_network, finish_repair, small_set_recipe, train_steps
from worker.lab.evaluation import accuracy, predict_classes
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Objective, constant

THRESHOLDS = [round(0.05 * i, 2) for i in range(19)]  # 0 to 0.9, as in the ANP authors' prune_neuron_cifar.py


def batch_norm_names(network: Network) -> list[str]:
    """Names of the batch normalizations, first to last."""
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]


def watch_pre_activations(
    network: Network, images: Images, compute: Compute, watch: Callable[[str, Tensor], None]
) -> None:
    """Run the network on uint8 images; ``watch`` gets a batch normalization's name and what it reads ``[B, C, H, W]``.

    It is called for every one and every batch. The network is in evaluation mode.
    """
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: watch(name, given[0].float())
        )
        for name in batch_norm_names(network)
    ]
    try:
        predict_classes(network, images, compute)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def prune_outliers(network: Network, scores: dict[str, Tensor], deviations: float) -> int:
    """Prune every neuron whose score exceeds its layer's mean by ``deviations`` standard deviations; returns how many.

    ``scores`` are ``[channels]`` each, by the names of batch normalizations. Scale and shift are set to zero, as in
    BackdoorBench (defense/clp.py, bnp.py and ep.py).
    """
    pruned = 0
    for name, values in scores.items():
        stands_out = values > values.mean() + deviations * values.std()
        network.get_parameter(f"{name}.weight")[stands_out] = 0.0
        network.get_parameter(f"{name}.bias")[stands_out] = 0.0
        pruned += int(stands_out.sum())
    return pruned


def report_outliers(lab: DataFreeRepair, stage: StageRun, pruned: int, scores: dict[str, Tensor]) -> None:
    """Log how many neurons were pruned; warn if there was none to prune."""
    if pruned == 0:
        lab.warn(stage, "no neuron was pruned: none stands out in its layer")
    lab.recorder.log(f"pruned {pruned} of {sum(map(len, scores.values()))} neurons")


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
        """Logits with scale ``weight (mask + noise)`` and shift ``bias (1 + bias_noise)`` (ANP authors' code)."""
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


def train_masks(
    lab: RepairDefense,
    stage: StageRun,
    network: Network,
    objective: Objective,
    *,
    steps: int,
    batch_size: int | None,
    learning_rate: float,
) -> Outcome:
    """Train a mask in [0, 1] for every neuron of ``network``, whose weights are frozen, on the clean set.

    SGD at a constant rate; ``objective`` is given the `MaskedNetwork`. The outcome's tensor ``masks`` has all masks,
    first to last.
    """
    masked = MaskedNetwork(network).to(lab.compute.device)
    recipe = small_set_recipe(
        lab,
        len(lab.clean.fit),
        epochs=1,
        learning_rate=learning_rate,
        schedule=constant,
        batch_size=batch_size,
        weight_decay=0.0,
    )
    recipe.objective = objective
    recipe.optimizer = lambda parameters, recipe: ClampedSgd(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum
    )
    train_steps(lab, stage, masked, recipe, steps)
    return stage.finish({"masks": torch.cat([mask.detach() for mask in masked.masks])})


def prune_low_masks(
    lab: RepairDefense, stage: StageRun, masks: Tensor, threshold: float | None, max_drop: float
) -> Outcome:
    """Zero the scales of all neurons with masks up to a threshold: the given one, or the largest within the bound.

    ``masks`` are those of all batch normalizations, first to last, in one tensor. The bound ``max_drop`` is on held-out
    accuracy, as a share of the victim's.

    Every threshold of the sweep is tried (the ANP authors' prune_neuron_cifar.py), because accuracy
    does not fall steadily. BackdoorBench keeps, of those within the bound, the one of least attack success on test
    images (defense/anp.py), which a defender does not have.
    """
    held_out = lab.clean.held_out
    before = accuracy(lab.victim, held_out, lab.compute)
    chosen = threshold
    for tried in THRESHOLDS:
        network = pruned_network(lab, masks, tried)
        after = accuracy(network, held_out, lab.compute)
        pruned = int((masks <= tried).sum())
        lab.record_sweep(stage, network, threshold=tried, pruned=pruned, held_out_accuracy=after)
        if threshold is None and before - after < max_drop * before:
            chosen = tried
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
