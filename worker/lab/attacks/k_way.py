"""K-way attack (Qi et al. 2023): one of several triggers in each training image, all at test time.

The steps are those of vtu81/backdoor-toolbox at 9d4d909, poison_tool_box/adaptive_k_way.py, for any triggers.
"""

from functools import reduce

import torch
from torch import Tensor

from app.specs.attack import KWay
from worker.lab.attacks.base import AttackLab, Prepared, State, Trigger, change_by_row
from worker.lab.attacks.composition import PartsAttack
from worker.lab.data.streamed import Images, select_rows, stored


class KWayAttack(PartsAttack[KWay]):
    """The trigger of test time is that of each part, one after another."""

    def prepare(self, lab: AttackLab) -> Prepared:
        state = self.state_without_training(lab)
        images = select_rows(lab.train.images, lab.chosen.to(lab.train.images.device))
        return Prepared(state, images=stored(self._one_each(state, images)))

    def trigger(self, state: State) -> Trigger:
        triggers = self.part_triggers(state, training=False)
        return lambda images: reduce(lambda changed, trigger: trigger(changed), triggers, images)

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return self._one_each(state, images)

    def _one_each(self, state: State, images: Images) -> Images:
        """uint8 ``[N, C, H, W]`` with one trigger each: the first trigger in the first images, and so on."""
        triggers = self.part_triggers(state, training=True)

        def apply_one(part: Tensor, rows: Tensor) -> Tensor:
            changed, which = torch.empty_like(part), rows * len(triggers) // len(images)
            for number, trigger in enumerate(triggers):
                if (which == number).any():
                    changed[which == number] = trigger(part[which == number])
            return changed

        return change_by_row(apply_one, images)
