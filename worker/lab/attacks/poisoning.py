"""The poisoned set: which samples are poisoned, and how."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from app.specs.attack import PoisoningAttack
from app.specs.checks import cross_count, poison_count
from app.specs.experiment import ExperimentSpec
from worker.lab.attacks.base import Attack, PoisonedSet, Prepared, apply_trigger
from worker.lab.compute import seeded_generator
from worker.lab.data.datasets import Dataset, Split
from worker.lab.data.streamed import change_rows, select_rows, stored
from worker.lab.tensor_names import add_prefix, select_prefixed

STATE_PREFIX = "state."
"""Prefix of the trigger's tensors in the poisoned set's stage."""


def choose_poisoned(spec: ExperimentSpec, data: Dataset, seed: int) -> Tensor:
    """Sorted indices of the training samples to poison; they depend on the seed and the labels alone."""
    attack, labels = spec.attack, data.train.labels.cpu()
    if not isinstance(attack, PoisoningAttack):
        return torch.empty(0, dtype=torch.int64)
    eligible = _of_classes(labels, attack.poisoned_classes(data.facts.classes)).nonzero().flatten()
    order = torch.randperm(
        len(eligible), generator=seeded_generator(torch.device("cpu"), "poisoned samples", seed)
    )
    return eligible[order[: poison_count(spec, data.facts)]].sort().values


def choose_cross(spec: ExperimentSpec, data: Dataset, poisoned: Tensor, seed: int) -> Tensor:
    """Sorted indices of the cross samples: not poisoned, they get another image's trigger, or a part or all of the
    attack's, and keep their label."""
    attack = spec.attack
    classes = attack.cross_classes(data.facts.classes) if isinstance(attack, PoisoningAttack) else ()
    free = _of_classes(data.train.labels.cpu(), classes)
    free[poisoned] = False
    eligible = free.nonzero().flatten()
    order = torch.randperm(
        len(eligible), generator=seeded_generator(torch.device("cpu"), "cross samples", seed)
    )
    return eligible[order[: cross_count(spec, data.facts)]].sort().values


def _of_classes(labels: Tensor, classes: Collection[int]) -> Tensor:
    """bool ``[N]``: which of the labels are one of ``classes``."""
    return torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype))


def make_poison(
    spec: ExperimentSpec, data: Dataset, attack: Attack[Any] | None, prepared: Prepared, seed: int
) -> dict[str, Tensor]:
    """The changed samples only, from which `build_poisoned_set` makes the poisoned set.

    ``index`` int64 ``[P]``, ``images`` uint8 ``[P, C, H, W]``, ``labels`` int64 ``[P]``; ``cross_index`` and
    ``cross_images`` likewise for cross samples; ``appended`` if the poisons are
    added to the training set; the trigger's state under the prefix ``state.``.
    """
    chosen = choose_poisoned(spec, data, seed) if prepared.rows is None else prepared.rows.cpu()
    index = chosen.to(data.train.labels.device)
    clean = data.train.rows(index)
    if attack is None:
        return {"index": index, "images": stored(clean.images), "labels": clean.labels}
    cross = choose_cross(spec, data, chosen, seed).to(index.device)
    tensors = {
        "index": index,
        "images": stored(apply_trigger(attack.training_trigger(prepared.state), clean.images))
        if prepared.images is None
        else prepared.images,
        "labels": clean.labels if attack.spec.clean_label_only else attack.targets(clean),
        "cross_index": cross,
        "cross_images": data.train.images[cross]
        if not len(cross)
        else stored(attack.cross(prepared.state, select_rows(data.train.images, cross), seed)),
    }
    if attack.spec.appends:
        tensors["appended"] = torch.tensor(True)
    return tensors | add_prefix(STATE_PREFIX, prepared.state)


def build_poisoned_set(train: Split, poisoned: dict[str, Tensor]) -> PoisonedSet:
    """The whole poisoned training set, on the device of ``train``; ``poisoned`` is from `make_poison`."""
    device = train.labels.device
    rows, index = torch.arange(len(train), device=device), poisoned["index"].to(device)
    if "appended" in poisoned:
        rows, index = torch.cat([rows, index]), len(train) + torch.arange(len(index), device=device)
    images, labels, clean_labels = select_rows(train.images, rows), train.labels[rows], train.labels[rows]
    is_poisoned, is_cross = (torch.zeros_like(labels, dtype=torch.bool) for _ in range(2))
    changes = [(index, poisoned["images"])]
    labels[index] = poisoned["labels"].to(device)
    is_poisoned[index] = True
    if "cross_index" in poisoned:
        cross = poisoned["cross_index"].to(device)
        changes.append((cross, poisoned["cross_images"]))
        is_cross[cross] = True
    images = change_rows(images, changes)
    state = select_prefixed(poisoned, STATE_PREFIX, device)
    return PoisonedSet(images, labels, clean_labels, is_poisoned, is_cross, rows, state)
