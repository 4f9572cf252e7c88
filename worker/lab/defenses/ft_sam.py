"""FT-SAM (Zhu et al. 2023): fine-tuning with sharpness-aware minimization.

Each step perturbs the weights to a nearby point of high loss, computes the gradient there, and applies it to the
original weights. The perturbation is scaled by each weight's magnitude (Kwon et al. 2021): backdoor neurons have large
weights, so they are perturbed most (equation 3 and section 4.2).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.repair import FtSam
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, Recipe, Schedule, cosine


class Sam(torch.optim.SGD):
    """SGD on gradients at the worst point of the adaptive ball, ``w + rho T^2 g / |T g|`` with ``T = |w|``.

    The step follows BackdoorBench's utils/defense_utils/sam/sam.py, which, unlike Kwon et al. (2021), adds no constant
    to ``|w|``. ``network`` is the one whose parameters are optimized.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], recipe: Recipe, rho: float, network: torch.nn.Module
    ) -> None:
        super().__init__(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.rho = rho
        self.network = network

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        assert closure is not None
        with torch.enable_grad():
            closure()
        weights = [w for group in self.param_groups for w in group["params"] if w.grad is not None]
        scaled = [w.abs() * w.grad for w in weights]
        norm = torch.stack([g.norm() for g in scaled]).norm() + 1e-12
        originals = [w.clone() for w in weights]
        for w, g in zip(weights, scaled, strict=True):
            w.add_(w.abs() * g * (self.rho / norm))  # perturb_weights: e = T^2 g rho / |T g|
        # The statistics of activations at the perturbed weights are not the network's (sam.py, disable_running_stats).
        with torch.enable_grad(), frozen_statistics(self.network):
            loss = closure()
        for w, original in zip(weights, originals, strict=True):
            w.copy_(original)
        super().step()
        return loss


@contextmanager
def frozen_statistics(network: torch.nn.Module) -> Iterator[None]:
    """Batch normalizations in training mode leave their running statistics as they are."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers if layer.num_batches_tracked is not None]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        tracked = [layer for layer in layers if layer.num_batches_tracked is not None]
        for layer, count in zip(tracked, counts, strict=True):
            layer.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def waves(steps: int, half_period: int | None) -> Schedule:
    """Cosine schedule of a training of ``steps`` batches that falls to zero and rises again every ``half_period``.

    BackdoorBench's scheduler has the period of its 100 epochs, and is advanced in every batch (defense/ft-sam.py).
    """
    return cosine if half_period is None else lambda share: cosine(share * steps / half_period)


def smoothed_objective(smoothing: float) -> Objective:
    """Cross-entropy with label smoothing."""

    def objective(network: Network, batch: Batch) -> Tensor:
        return F.cross_entropy(network(batch.x).float(), batch.labels, label_smoothing=smoothing)

    return objective


def run(spec: FtSam, lab: RepairDefense) -> Network:
    """Fine-tune the victim with SAM."""

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        recipe = small_set_recipe(
            lab,
            len(lab.clean.fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            schedule=waves(spec.steps, spec.half_period),
            batch_size=spec.batch_size,
            weight_decay=spec.weight_decay,
        )
        recipe.objective = smoothed_objective(spec.label_smoothing)
        recipe.optimizer = partial(Sam, rho=spec.rho, network=network)
        train_steps(lab, stage, network, recipe, spec.steps)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))
