"""Blended injection (Chen et al. 2017): a faint pattern over the whole image, relabeled to the target."""

from torch import Tensor

from app.specs.attack import Blend
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.patterns import choose_pattern


def blend(images: Tensor, pattern: Tensor, alpha: float) -> Tensor:
    """``(1 - alpha) x + alpha pattern``, rounded; uint8 ``[N, C, H, W]`` and ``[C, H, W]``."""
    return to_uint8(images.float().mul_(1 - alpha).add_(pattern.float().to(images.device), alpha=alpha))


class BlendAttack(Attack[Blend]):
    """The pattern, uint8 ``[C, H, W]``, is the attack's state."""

    def prepare(self, lab: AttackLab) -> Prepared:
        return Prepared({"pattern": choose_pattern(self.spec, lab.train.images, self.facts)})

    def trigger(self, state: State) -> Trigger:
        return lambda images: blend(images, state["pattern"], self.spec.alpha)
