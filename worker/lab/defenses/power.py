"""How far a result of `abl_plus` can be trusted: which decoys it would have noticed in this very set.

Decoys are training images with triggers of the defense's own, relabeled to a class that is not accused. Their truth is
known, so that a model of the same network and recipe shows what its signs can see. They say nothing about whom to
accuse: an attacker's trigger may be of a kind that is never planted.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.attacks.base import to_uint8
from worker.lab.compute import seeded_generator
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import change_rows, select_rows, stored
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.removal import split_classes
from worker.lab.defenses.signs import combine_signs, find_judged, measure_signs
from worker.lab.stages import Outcome, StageRun

DECOYS = (("patch", 1 / 3), ("blend", 1 / 3), ("warp", 1 / 3), ("patch", 0.1), ("blend", 0.1), ("warp", 0.1))
"""Trigger, and share of its class that a decoy is. One decoy a class, in half of the classes at most."""
NOTICED = 0.5  # least precision and recall of a side of the class as a finding of the decoy
PATCH_SIDE = 0.1  # of the image's
ALPHA = 0.2  # opacity of the pattern over the whole image
WARP_GRID, WARP_PIXELS = 4, 1.5  # control points a side, and their largest shift


def measure_power(lab: TrainingDefense, stage: StageRun, isolated: Tensor, accused: list[int]) -> Outcome:
    """Train on the set without the ``isolated`` (bool ``[N]``) and with decoys, none of them of ``accused`` classes.

    Leaves in its facts ``power``: of each decoy the trigger, its share of a class, the label, and whether it was
    noticed. Where no class can take a decoy it trains nothing.
    """
    kept = (~isolated).nonzero().flatten().to(lab.labels.device)
    split, planted = plant_decoys(lab.split.rows(kept), accused, lab.seed)
    if not planted:
        return stage.finish({}, power=[])
    network = lab.new_network("victim")
    lab.fit_on(stage, network, split, replace(lab.recipe, memory={}))
    labels = split.labels.cpu()
    sign = combine_signs(measure_signs(lab, stage, network, split), labels)
    sides = {
        side.label: (side.flagged, side.members & ~side.flagged)
        for side in split_classes(sign, labels, lab.seed, smaller=True)
    }
    power = [
        {
            "trigger": trigger,
            "share": share,
            "label": label,
            "noticed": is_noticed(decoys, sides.get(label, ())),
        }
        for (trigger, share), (label, decoys) in zip(DECOYS, planted.items(), strict=False)
    ]
    return stage.finish({}, power=power)


def plant_decoys(split: Split, accused: list[int], seed: int) -> tuple[Split, dict[int, Tensor]]:
    """A copy of ``split`` with decoys, and by class which of its samples they are, bool ``[N]`` on the CPU.

    The classes are drawn by the ``seed`` from those that can be judged and are not ``accused``.
    """
    labels = split.labels.cpu().clone()
    generator = seeded_generator(torch.device("cpu"), "decoys", seed)
    judged = [label for label in find_judged(labels) if label not in accused]
    order = torch.randperm(len(judged), generator=generator)[: min(len(DECOYS), len(labels.unique()) // 2)]
    chosen = [judged[i] for i in order]
    free = torch.ones(len(labels), dtype=torch.bool)
    for label in [*chosen, *accused]:
        free &= labels != label
    changes, planted = [], {}
    for label, (trigger, share) in zip(chosen, DECOYS, strict=False):
        sources = free.nonzero().flatten()
        # A share s of the class once n of its own members are joined by n s / (1 - s) decoys.
        count = round(int((labels == label).sum()) * share / (1 - share))
        rows = sources[torch.randperm(len(sources), generator=generator)[:count]]
        images = stored(select_rows(split.images, rows.to(split.labels.device)))
        changes.append(
            (rows.to(split.labels.device), make_trigger(trigger, images.shape[1:], generator)(images))
        )
        labels[rows], free[rows] = label, False
        planted[label] = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, rows, True)
    copy = split.images.clone() if isinstance(split.images, Tensor) else split.images
    return Split(change_rows(copy, changes), labels.to(split.labels.device)), planted


def is_noticed(decoys: Tensor, sides: tuple[Tensor, ...]) -> bool:
    """Whether one of the ``sides`` consists mostly of ``decoys`` and has most of them; bool ``[N]`` all."""
    hits = [(int((side & decoys).sum()), int(side.sum())) for side in sides]
    return any(hit >= NOTICED * size and hit >= NOTICED * int(decoys.sum()) for hit, size in hits if size)


def make_trigger(name: str, shape: torch.Size, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random trigger for uint8 images ``[B, C, H, W]``, whose ``shape`` is ``[C, H, W]``.

    A patch of noise at a random place, noise over the whole image, or a smooth warp.
    """
    channels, height, width = shape
    if name == "patch":
        side = max(2, round(PATCH_SIDE * min(height, width)))
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (height, width))
        patch = torch.randint(256, (channels, side, side), generator=generator, dtype=torch.uint8)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, top : top + side, left : left + side] = patch.to(images.device)
            return images

        return stamp
    if name == "blend":
        noise = 255 * torch.rand(shape, generator=generator)
        return lambda images: to_uint8((1 - ALPHA) * images.float() + ALPHA * noise.to(images.device))
    shift = 2 * torch.rand((1, 2, WARP_GRID, WARP_GRID), generator=generator) - 1
    flow = F.interpolate(shift, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, channels, height, width], align_corners=True)
    # Coordinates of [-1, 1] span H - 1 and W - 1 pixels.
    grid = identity + flow * 2 * WARP_PIXELS / torch.tensor([width - 1, height - 1])

    def warp(images: Tensor) -> Tensor:
        grids = grid.to(images.device).expand(len(images), -1, -1, -1)
        return to_uint8(F.grid_sample(images.float(), grids, padding_mode="border", align_corners=True))

    return warp
