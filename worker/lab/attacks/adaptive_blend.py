"""Adaptive-Blend (Qi et al. 2023): parts of a blended pattern in training, the whole pattern at test time.

The steps are those of the authors' toolbox (vtu81/backdoor-toolbox at 9d4d909, poison_tool_box/adaptive_blend.py).
"""

import torch
from torch import Tensor

from app.specs.attack import AdaptiveBlend
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, apply_trigger, to_uint8
from worker.lab.attacks.blend import blend, find_test_pattern
from worker.lab.attacks.patterns import choose_pattern, choose_test_pattern, choose_weight
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import Images, select_rows, stored


class AdaptiveBlendAttack(Attack[AdaptiveBlend]):
    """``x + alpha m (pattern - x)``, where ``m`` is 0 in some of the image's squares, at random for each image.

    The pattern, uint8 ``[C, H, W]``, is the attack's state.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        state = self.state_without_training(lab)
        images = select_rows(lab.train.images, lab.chosen.to(lab.train.images.device))
        return Prepared(state, images=stored(self._blend_parts(state, images, "adaptive poisons", lab.seed)))

    def state_without_training(self, lab: AttackLab) -> State:
        pattern = choose_pattern(self.spec, lab.train.images, self.facts)
        more = choose_weight(self.spec, self.facts) | choose_test_pattern(self.spec, self.facts)
        return {"pattern": pattern, **more}

    def trigger(self, state: State) -> Trigger:
        pattern, weight = find_test_pattern(state)
        return lambda images: blend(images, pattern, self.spec.test_alpha, weight)

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return self._blend_parts(state, images, "adaptive cover", seed)

    def _blend_parts(self, state: State, images: Images, purpose: str, seed: int) -> Images:
        """uint8 ``[N, C, H, W]`` with the pattern in some squares, in the strength of training."""
        generator = seeded_generator(torch.device("cpu"), purpose, seed)
        pattern = state["pattern"].to(images.device).float()

        def blend_masked(part: Tensor) -> Tensor:
            weights = self.spec.alpha * self.draw_masks(len(part), generator).to(part.device)
            if "weight" in state:
                weights = weights * state["weight"].to(part.device)
            return to_uint8(part.float() * (1 - weights) + weights * pattern)

        return apply_trigger(blend_masked, images)

    def draw_masks(self, count: int, generator: torch.Generator) -> Tensor:
        """Float ``[count, 1, H, W]``: 0 in a random share ``masked`` of each image's squares, 1 in the others
        (get_trigger_mask). The squares at the far edges are larger where the sides are no multiples."""
        pieces = self.spec.pieces
        hidden = round(self.spec.masked * pieces**2)
        order = torch.rand(count, pieces**2, generator=generator).argsort(1)
        kept = (order >= hidden).float().view(count, 1, pieces, pieces)
        rows, columns = (
            (torch.arange(side) // (side // pieces)).clamp(max=pieces - 1)
            for side in (self.facts.height, self.facts.width)
        )
        return kept[:, :, rows][:, :, :, columns]
