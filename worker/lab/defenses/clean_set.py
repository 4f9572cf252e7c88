"""The clean set: the few images that a defender trusts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.lab.compute import derive_seed
from worker.lab.data.datasets import Split, draw_stratified


@dataclass(frozen=True)
class CleanSet:
    """Clean images with true labels. ``fit`` may be trained on; ``held_out`` is for bounds and for warnings."""

    fit: Split
    held_out: Split

    @property
    def images(self) -> Tensor:
        """Every image of the clean set, where nothing is trained."""
        return torch.cat([self.fit.images, self.held_out.images])


def draw_clean_set(train: Split, classes: int, ratio: float, held_out_ratio: float, seed: int) -> CleanSet:
    """Draw the clean set from the *unpoisoned* training set ``train``, class proportions kept.

    The same ``ratio`` and ``seed`` give the same images to every defense. Images that the attack poisoned are not
    passed over, for which they are is the attacker's secret; the defender gets the untouched originals.
    """
    device = train.labels.device
    size = max(2, round(ratio * len(train)))
    chosen = draw_stratified(train.labels, size, classes, derive_seed("clean set", seed))
    labels = train.labels[chosen.to(device)]
    watched = max(1, round(held_out_ratio * size))
    mask = torch.zeros(len(chosen), dtype=torch.bool)
    mask[draw_stratified(labels, watched, classes, derive_seed("held-out part of the clean set", seed))] = (
        True
    )
    return CleanSet(train.rows(chosen[~mask].to(device)), train.rows(chosen[mask].to(device)))
