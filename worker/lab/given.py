"""Datasets that came poisoned (the attack ``given``): used as they are, scored by what they say about themselves."""

from dataclasses import replace

import torch
from torch import Tensor

from app.specs.attack import Given
from app.specs.checks import clean_pool_size
from worker.lab.attacks import PoisonedSet
from worker.lab.compute import derive_seed
from worker.lab.data.datasets import Dataset, Split, draw_stratified
from worker.lab.evaluation import TestSet


def set_clean_pool_aside(attack: Given, data: Dataset, seed: int) -> tuple[Split, Split]:
    """(the test images that are measured on, those that clean sets are drawn from), class proportions kept.

    Training images cannot serve as clean sets: the originals of the poisoned ones are not known.
    """
    in_pool = torch.zeros(len(data.test), dtype=torch.bool)
    if size := clean_pool_size(attack, data.facts):
        purpose = derive_seed("clean pool", seed)
        in_pool[draw_stratified(data.test.labels, size, data.facts.classes, purpose)] = True
    in_pool = in_pool.to(data.test.labels.device)
    return data.test.rows(~in_pool), data.test.rows(in_pool)


def add_truth(poisoned: PoisonedSet, data: Dataset) -> PoisonedSet:
    """The training set, which is used as it is, with what is known about it."""
    truth = data.truth
    is_cross = poisoned.is_cross if truth.is_cross is None else truth.is_cross
    return replace(
        poisoned, is_poisoned=truth.is_poisoned, is_cross=is_cross, clean_labels=truth.clean_labels
    )


def find_targets(attack: Given, data: Dataset) -> Tensor | None:
    """The target classes of poisoned images, int64 ``[K]``, as far as the user or the dataset knows; else None."""
    if attack.target_class is not None:
        return torch.tensor([attack.target_class])
    truth = data.truth
    return None if truth.is_poisoned is None else data.train.labels[truth.is_poisoned].unique()


def make_given_test_set(
    attack: Given, data: Dataset, clean: Split, size: int | None = None, seed: int = 0
) -> TestSet:
    """``clean`` test images, and the dataset's triggered ones, or ``size`` of them, but none of their target class.

    ``targets`` are None where the class that the attacker aims at is not known.
    """
    truth, triggered, targets = data.truth, data.truth.triggered, None
    if attack.triggered_test == "none" or triggered is None:
        return TestSet(clean, None, None, None)
    if size is not None:
        rows = draw_stratified(triggered.labels, size, data.facts.classes, seed).to(triggered.labels.device)
    else:
        rows = torch.arange(len(triggered), device=triggered.labels.device)
    triggered = triggered.rows(rows)
    if attack.target_class is None and truth.targets is not None:
        targets = truth.targets[rows]
    elif (classes := find_targets(attack, data)) is not None and len(classes) == 1:
        targets = classes.to(rows.device).expand(len(rows))
    if targets is not None:
        others = targets != triggered.labels
        triggered, targets = triggered.rows(others), targets[others]
    return TestSet(clean, triggered, targets, None)
