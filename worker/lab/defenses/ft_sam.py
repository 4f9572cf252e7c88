"""FT-SAM (Zhu et al. 2023): fine-tuning with sharpness-aware minimization.

Each step perturbs the weights to a nearby point of high loss, computes the gradient there, and applies it to the
original weights. The perturbation is scaled by each weight's magnitude (Kwon et al. 2021): backdoor neurons have large
weights, so they are perturbed most (equation 3 and section 4.2).
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from app.specs.defenses.repair import FtSam
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import copy_network, finish_repair, load_network, small_set_recipe
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe

ETA = 0.01  # added to each weight's magnitude, so that a weight of zero is perturbed too (Kwon et al. 2021)


class Sam(torch.optim.SGD):
    """SGD on gradients at the worst point of the adaptive ball, ``w + rho T^2 g / |T g|`` with ``T = |w| + eta``."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], recipe: Recipe, rho: float) -> None:
        super().__init__(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        assert closure is not None
        with torch.enable_grad():
            closure()
        weights = [w for group in self.param_groups for w in group["params"] if w.grad is not None]
        scaled = [(w.abs() + ETA) * w.grad for w in weights]
        norm = torch.stack([g.norm() for g in scaled]).norm() + 1e-12
        originals = [w.clone() for w in weights]
        for w, g in zip(weights, scaled, strict=True):
            w.add_((w.abs() + ETA) * g * (self.rho / norm))
        with torch.enable_grad():
            loss = closure()
        for w, original in zip(weights, originals, strict=True):
            w.copy_(original)
        super().step()
        return loss


def run(spec: FtSam, lab: RepairDefense) -> Network:
    """Fine-tune the victim with SAM."""

    def tune(stage: StageRun) -> Outcome:
        network, fit = copy_network(lab, lab.victim), lab.clean.fit
        recipe = small_set_recipe(lab, len(fit), epochs=spec.epochs, learning_rate=spec.learning_rate)
        recipe.optimizer = partial(Sam, rho=spec.rho)
        lab.fit_on(stage, network, fit, recipe)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))
