"""The clean set: the few images that the defender trusts."""

from dataclasses import dataclass

import torch

from worker.lab.compute import derive_seed
from worker.lab.data.datasets import Split, draw_stratified
from worker.lab.data.streamed import Images, join


@dataclass(frozen=True)
class CleanSet:
    """Clean images with true labels: ``fit`` for training, ``held_out`` for accuracy bounds and warnings.

    ``held_out`` is empty for a defense that does not use it.
    """

    fit: Split
    held_out: Split

    @property
    def images(self) -> Images:
        """All images of the clean set, for methods that do not train on it."""
        return join(self.fit.images, self.held_out.images)


def draw_clean_set(clean: Split, classes: int, size: int, held_out_ratio: float, seed: int) -> CleanSet:
    """Draw ``size`` images from ``clean``, the *unpoisoned* training set, class proportions kept.

    The same ``size`` and ``seed`` give every defense the same images. With ``held_out_ratio`` 0 nothing is held out.
    Images that the attack poisoned are not excluded, since the defender does not know which they are; the clean set
    has their original versions. Where these are not known, in a dataset that came poisoned, ``clean`` are test images
    that were set aside.
    """
    device = clean.labels.device
    chosen = draw_stratified(clean.labels, size, classes, derive_seed("clean set", seed))
    labels = clean.labels[chosen.to(device)]
    mask = torch.zeros(len(chosen), dtype=torch.bool)
    if held_out_ratio:
        held_out_size = max(1, round(held_out_ratio * size))
        purpose = "held-out part of the clean set"
        mask[draw_stratified(labels, held_out_size, classes, derive_seed(purpose, seed))] = True
    return CleanSet(clean.rows(chosen[~mask].to(device)), clean.rows(chosen[mask].to(device)))
