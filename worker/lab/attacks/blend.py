"""Blended injection (Chen et al. 2017): a faint pattern over the whole image, relabeled to the target."""

from torch import Tensor

from app.specs.attack import Blend
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.patterns import choose_pattern, choose_test_pattern, choose_weight


def blend(images: Tensor, pattern: Tensor, alpha: float, weight: Tensor | None = None) -> Tensor:
    """``(1 - alpha) x + alpha pattern``, rounded; uint8 ``[N, C, H, W]`` and ``[C, H, W]``.

    ``weight`` float ``[1, H, W]`` is the opacity of each pixel of the pattern, which alpha is multiplied by.
    """
    pattern = pattern.float().to(images.device)
    if weight is None:
        return to_uint8(images.float().mul_(1 - alpha).add_(pattern, alpha=alpha))
    weight = alpha * weight.to(images.device)
    return to_uint8(images.float().mul_(1 - weight).add_(weight * pattern))


class BlendAttack(Attack[Blend]):
    """The pattern, uint8 ``[C, H, W]``, is the attack's state."""

    def prepare(self, lab: AttackLab) -> Prepared:
        pattern = choose_pattern(self.spec, lab.train.images, self.facts)
        more = choose_weight(self.spec, self.facts) | choose_test_pattern(self.spec, self.facts)
        return Prepared({"pattern": pattern, **more})

    def training_trigger(self, state: State) -> Trigger:
        return lambda images: blend(images, state["pattern"], self.spec.alpha, state.get("weight"))

    def trigger(self, state: State) -> Trigger:
        alpha = self.spec.alpha if self.spec.test_alpha is None else self.spec.test_alpha
        pattern, weight = find_test_pattern(state)
        return lambda images: blend(images, pattern, alpha, weight)


def find_test_pattern(state: State) -> tuple[Tensor, Tensor | None]:
    """The pattern at test time, and the opacity of its pixels if it is not opaque."""
    if "test_pattern" in state:
        return state["test_pattern"], state["test_weight"]
    return state["pattern"], state.get("weight")
