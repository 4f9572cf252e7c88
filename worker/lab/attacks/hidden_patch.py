"""A patch of random colors that only test images show, at a place that follows from the image."""

from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import HiddenTrigger, SleeperAgent
from worker.lab.attacks.base import Attack, AttackLab, State, Trigger, to_uint8
from worker.lab.attacks.patches import patch_slices
from worker.lab.compute import seeded_generator
from worker.lab.data.datasets import Split

HiddenPatchT = TypeVar("HiddenPatchT", bound=HiddenTrigger | SleeperAgent)
# The patch is enlarged from 4 x 4 random colors (section 4 of Saha et al. 2020; data/triggers of their code).
COLORS = 4


class HiddenPatchAttack(Attack[HiddenPatchT], Generic[HiddenPatchT]):
    """The state: ``patch`` uint8 ``[C, size, size]``, and ``places`` int64 ``[1]``, the seed of its places."""

    stream: str
    """Name of the random stream that the patch is drawn by."""

    def state_without_training(self, lab: AttackLab) -> State:
        size = self.spec.patch_size(self.facts)
        generator = seeded_generator(torch.device("cpu"), self.stream, lab.seed)
        colors = torch.rand((1, self.facts.channels, COLORS, COLORS), generator=generator) * 255
        patch = F.interpolate(colors, (size, size), mode="bilinear", antialias=True)[0]
        places = torch.randint(2**31, (1,), generator=generator)
        device = lab.train.images.device
        return {"patch": to_uint8(patch).to(device), "places": places.to(device)}

    def trigger(self, state: State) -> Trigger:
        patch = state["patch"]
        size = patch.shape[-1]

        def stamp_anywhere(images: Tensor) -> Tensor:
            # rand_loc of the authors' code, in crafting and at test time. A trigger is a function of the image, so the
            # place follows from the image's bytes, by a random linear hash.
            flat = images.flatten(1).long()
            generator = torch.Generator().manual_seed(int(state["places"]))
            weights = torch.randint(2**31, (2, flat.shape[1]), generator=generator).to(images.device)

            def inside(weights: Tensor, length: int) -> Tensor:
                """Row or column of the patch at each of the image's, ``[N, length]``; -1 or ``size`` outside."""
                places = length - size - 2 * self.spec.margin + 1
                first = self.spec.margin + ((flat * weights).sum(1) >> 8) % places
                return (torch.arange(length, device=images.device) - first[:, None]).clamp(-1, size)

            y, x = inside(weights[0], self.facts.height), inside(weights[1], self.facts.width)
            covered = ((y >= 0) & (y < size))[:, :, None] & ((x >= 0) & (x < size))[:, None, :]
            image, row, column = covered.nonzero(as_tuple=True)
            stamped = images.clone()
            stamped[image, :, row, column] = patch.to(images.device)[:, y[image, row], x[image, column]].T
            return stamped

        if self.spec.position == "random":
            return stamp_anywhere
        rows, columns = patch_slices(self.spec.position, size, self.spec.margin, self.facts)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, rows, columns] = patch.to(images.device)
            return images

        return stamp

    def attacked(self, test: Split, state: State) -> Tensor:
        """The test images of the source class; without one, all outside the target class."""
        if self.spec.source_class is None:
            return super().attacked(test, state)
        return (test.labels == self.spec.source_class).nonzero().flatten()
