"""K-way attack (Qi et al. 2023): one of several triggers in each training image, all at test time.

The steps are those of vtu81/backdoor-toolbox at 9d4d909, poison_tool_box/adaptive_k_way.py, for any triggers.
"""

from functools import reduce

import torch
from torch import Tensor

from app.specs.attack import KWay
from worker.lab.attacks.base import AttackLab, Prepared, State, Trigger, apply_trigger
from worker.lab.attacks.composition import PartsAttack


class KWayAttack(PartsAttack[KWay]):
    """The trigger of test time is that of each part, one after another."""

    def prepare(self, lab: AttackLab) -> Prepared:
        state = self.state_without_training(lab)
        images = lab.train.images[lab.chosen.to(lab.train.images.device)]
        return Prepared(state, images=self._one_each(state, images))

    def trigger(self, state: State) -> Trigger:
        triggers = self.part_triggers(state)
        return lambda images: reduce(lambda changed, trigger: trigger(changed), triggers, images)

    def cross(self, state: State, images: Tensor, seed: int) -> Tensor:
        return self._one_each(state, images)

    def _one_each(self, state: State, images: Tensor) -> Tensor:
        """uint8 ``[N, C, H, W]`` with one trigger each: the first trigger in the first images, and so on."""
        triggers = self.part_triggers(state)
        changed = torch.empty_like(images)
        which = torch.arange(len(images), device=images.device) * len(triggers) // max(1, len(images))
        for number, trigger in enumerate(triggers):
            rows = which == number
            changed[rows] = apply_trigger(trigger, images[rows])
        return changed
