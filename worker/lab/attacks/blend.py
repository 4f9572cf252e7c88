"""Blended injection (Chen et al. 2017): a faint pattern over the whole image, relabeled to the target."""

import torch
from torch import Tensor

from app.specs.attack import Blend
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.patterns import decode_pattern
from worker.lab.compute import seeded_generator


class BlendAttack(Attack[Blend]):
    """``(1 - alpha) x + alpha pattern``, rounded. The pattern, uint8 ``[C, H, W]``, is the attack's state."""

    def prepare(self, lab: AttackLab) -> Prepared:
        return Prepared({"pattern": self.pattern(lab.train.images)})

    def pattern(self, images: Tensor) -> Tensor:
        """Noise drawn from ``pattern_seed``, one of the training ``images``, or the uploaded picture."""
        if self.spec.pattern_index is not None:
            return images[self.spec.pattern_index].clone()
        if self.spec.pattern_png is not None:
            return decode_pattern(self.spec.pattern_png, self.facts)
        shape = (self.facts.channels, self.facts.height, self.facts.width)
        generator = seeded_generator(torch.device("cpu"), "blend pattern", self.spec.pattern_seed)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def trigger(self, state: State) -> Trigger:
        alpha, pattern = self.spec.alpha, state["pattern"].float()

        def blend(images: Tensor) -> Tensor:
            return to_uint8(images.float().mul_(1 - alpha).add_(pattern.to(images.device), alpha=alpha))

        return blend
