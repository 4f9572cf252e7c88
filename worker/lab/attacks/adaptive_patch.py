"""Adaptive-Patch (Qi et al. 2023): one of several faint patches in each training image, stronger ones at test time.

The steps are those of the authors' toolbox (vtu81/backdoor-toolbox at 9d4d909, poison_tool_box/adaptive_patch.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.specs.attack import AdaptivePatch
from app.specs.attacks.covered import Patch
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, change_by_row, to_uint8
from worker.lab.attacks.patches import checkerboard, patch_slices
from worker.lab.attacks.patterns import decode_pattern
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import Images, select_rows, stored

Layer = tuple[Tensor, Tensor]
"""Colors, float ``[C, H, W]``, and weights, float ``[1, H, W]``, of one patch."""


class AdaptivePatchAttack(Attack[AdaptivePatch]):
    """``x <- x + opacity m (p - x)`` for each patch ``p`` with the places ``m``; in training for one patch only."""

    def prepare(self, lab: AttackLab) -> Prepared:
        images = select_rows(lab.train.images, lab.chosen.to(lab.train.images.device))
        return Prepared(images=stored(self._stamp_one_each(images)))

    def state_without_training(self, lab: AttackLab) -> State:
        return {}

    def trigger(self, state: State) -> Trigger:
        layers = [self.layer(patch) for patch in self.spec.test_patches]
        return lambda images: stamp(images, layers)

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return self._stamp_one_each(images)

    def _stamp_one_each(self, images: Images) -> Images:
        """uint8 ``[N, C, H, W]`` with one patch each: the first patch in the first images, and so on."""
        layers = [self.layer(patch) for patch in self.spec.patches]

        def stamp_one(part: Tensor, rows: Tensor) -> Tensor:
            stamped, which = torch.empty_like(part), rows * len(layers) // len(images)
            for number, layer in enumerate(layers):
                stamped[which == number] = stamp(part[which == number], [layer])
            return stamped

        return change_by_row(stamp_one, images)

    def layer(self, patch: Patch) -> Layer:
        """The patch at its places."""
        shape = (self.facts.channels, self.facts.height, self.facts.width)
        if patch.png is not None:
            colors = decode_pattern(patch.png, self.facts, "patches.png").float()
            # The toolbox's pictures have no mask of their own: "all black pixels are masked with 0's".
            return colors, patch.opacity * (colors > 0).any(0, keepdim=True).float()
        side = patch.side(self.facts)
        if patch.pattern == "noise":
            generator = seeded_generator(torch.device("cpu"), "patch", patch.pattern_seed)
            square = torch.randint(256, (shape[0], side, side), generator=generator).float()
        else:
            white = checkerboard(side) if patch.pattern == "checkerboard" else torch.ones((side, side))
            square = white.float() * 255
        colors, weights = torch.zeros(shape), torch.zeros((1, *shape[1:]))
        for position in patch.positions:
            rows, columns = patch_slices(position, side, patch.distance(self.facts), self.facts)
            colors[:, rows, columns] = square
            weights[:, rows, columns] = patch.opacity
        return colors, weights


def stamp(images: Tensor, layers: Sequence[Layer]) -> Tensor:
    """uint8 images with all layers, one after another; rounded at the end."""
    x = images.float()
    for colors, weights in layers:
        x += weights.to(x.device) * (colors.to(x.device) - x)
    return to_uint8(x)
