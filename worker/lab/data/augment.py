"""Random augmentation of a batch: tensor operations on the device, drawn independently for every image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.dataset import MIRRORED, DatasetSpec
from app.specs.facts import DatasetFacts
from app.specs.training import Augmentation


@dataclass(frozen=True)
class Augment:
    """Pad-and-crop, horizontal flip and cutout, with every default resolved."""

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copies of uint8 ``[N, C, H, W]``."""
        n, _, height, width = images.shape
        device = images.device

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n, 1), device=device, generator=generator)

        if self.crop_padding or self.flip:
            rows = torch.arange(height, device=device).expand(n, -1)
            columns = torch.arange(width, device=device).expand(n, -1)
            if self.flip:
                columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
            pad = self.crop_padding
            if pad:
                rows, columns = rows + draw(2 * pad + 1), columns + draw(2 * pad + 1)
            padded = F.pad(images, (pad, pad, pad, pad))
            each = torch.arange(n, device=device)[:, None, None]
            # One gather per pixel for flip and crop; advanced indices around the channel slice put the channels last.
            images = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        if self.cutout:
            top, left = draw(height) - self.cutout // 2, draw(width) - self.cutout // 2
            row, column = torch.arange(height, device=device), torch.arange(width, device=device)
            in_rows = (row >= top) & (row < top + self.cutout)
            in_columns = (column >= left) & (column < left + self.cutout)
            hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
            images = images.masked_fill(hole, 0)
        return images


def resolve_augmentation(spec: Augmentation, dataset: DatasetSpec, facts: DatasetFacts) -> Augment:
    """Fill the fields that are None: crop by an eighth of the side, flip only the datasets of `MIRRORED`."""
    padding = min(facts.height, facts.width) // 8 if spec.crop_padding is None else spec.crop_padding
    flip = dataset.name in MIRRORED if spec.flip is None else spec.flip
    return Augment(padding, flip, spec.cutout)
