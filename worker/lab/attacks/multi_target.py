"""Multi-target attack (Xue et al. 2022): several triggers, each with a target class of its own."""

import torch
from torch import Tensor

from app.specs.attack import MultiTarget
from worker.lab.attacks.base import CHUNK, State, Trigger
from worker.lab.attacks.composition import PartsAttack
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images


class MultiTargetAttack(PartsAttack[MultiTarget]):
    """An image gets the trigger number (sum of its bytes) modulo their number, and is driven to that one's target."""

    def trigger(self, state: State) -> Trigger:
        return self._choosing(self.part_triggers(state, training=False))

    def training_trigger(self, state: State) -> Trigger:
        return self._choosing(self.part_triggers(state, training=True))

    def _choosing(self, triggers: list[Trigger]) -> Trigger:
        """Applies to each image the trigger with its number."""

        def stamp(images: Tensor) -> Tensor:
            which, changed = self._which(images), torch.empty_like(images)
            for number, trigger in enumerate(triggers):
                rows = which == number
                changed[rows] = trigger(images[rows])
            return changed

        return stamp

    def targets(self, clean: Split) -> Tensor:
        return torch.tensor(self.spec.targets, device=clean.labels.device)[self._which(clean.images)]

    def attacked(self, test: Split, state: State) -> Tensor:
        """Rows of no target class: images of one are not poisoned."""
        targets = torch.tensor(self.spec.targets, device=test.labels.device)
        return (~torch.isin(test.labels, targets)).nonzero().flatten()

    def _which(self, images: Images) -> Tensor:
        """The number of each image's trigger, int64 ``[N]``."""
        sums = [part.sum((1, 2, 3)) for part in images.split(CHUNK)]
        return torch.cat(sums) % len(self.spec.triggers)
