"""Making a poisoned set: which samples, and what becomes of them."""

import torch
from torch import Tensor

from app.specs.checks import poison_count
from app.specs.experiment import ExperimentSpec
from worker.lab.attacks import PoisonedSet, Trigger, make
from worker.lab.compute import generator
from worker.lab.data.datasets import Dataset, Split

CHUNK = 8192  # images stamped at a time: bounds the float copies that a trigger makes


def stamp(trigger: Trigger, images: Tensor) -> Tensor:
    """Apply a trigger in chunks, so that its intermediate floats stay small."""
    return torch.cat([trigger(part) for part in images.split(CHUNK)])


def choose(spec: ExperimentSpec, data: Dataset, seed: int) -> Tensor:
    """Sorted indices of the training samples to poison; they follow from the seed and the labels alone."""
    attack, labels = spec.attack, data.train.labels.cpu()
    if attack.name == "none":
        return torch.empty(0, dtype=torch.int64)
    in_target = labels == attack.target_class
    # A dirty-label attack passes the target class over: relabelled to what it is, it would teach nothing.
    eligible = torch.nonzero(in_target if attack.clean_label_only else ~in_target).flatten()
    order = torch.randperm(len(eligible), generator=generator(torch.device("cpu"), "poisoned samples", seed))
    return eligible[order[: poison_count(spec, data.facts)]].sort().values


def poison(spec: ExperimentSpec, data: Dataset, seed: int) -> dict[str, Tensor]:
    """The poisoned samples alone, enough to rebuild the poisoned set from the clean one.

    ``index`` int64 ``[P]``, ``images`` uint8 ``[P, C, H, W]``, ``labels`` int64 ``[P]``.
    """
    index = choose(spec, data, seed).to(data.train.labels.device)
    chosen = data.train.rows(index)
    attack = make(spec.attack, data.facts)
    if attack is None:
        return {"index": index, "images": chosen.images, "labels": chosen.labels}
    labels = (
        chosen.labels
        if spec.attack.name != "none" and spec.attack.clean_label_only
        else attack.target(chosen.labels)
    )
    return {"index": index, "images": stamp(attack.poison({}), chosen.images), "labels": labels}


def rebuild(train: Split, poisoned: dict[str, Tensor]) -> PoisonedSet:
    """The whole poisoned training set, on the device of ``train``."""
    device = train.labels.device
    index = poisoned["index"].to(device)
    images, labels = train.images.clone(), train.labels.clone()
    images[index] = poisoned["images"].to(device)
    labels[index] = poisoned["labels"].to(device)
    flags = torch.zeros_like(labels, dtype=torch.bool)
    is_poisoned = flags.clone()
    is_poisoned[index] = True
    return PoisonedSet(images, labels, train.labels, is_poisoned, is_cross=flags)
