"""Sprite sheets: many small images in one PNG, unscaled, for programs that cut them out again."""

import io

import torch
from PIL import Image
from torch import Tensor

COLUMNS = 20


def sprite_sheet(images: Tensor) -> bytes:
    """A PNG of uint8 images ``[N, C, H, W]``, N >= 1, C 1 or 3, in rows of `COLUMNS` from the top left, no gaps."""
    n, channels, height, width = images.shape
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    grid = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    grid[:n] = images.cpu()
    whole = grid.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = whole.reshape(rows * height, columns * width, channels).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(out, "PNG", optimize=True)
    return out.getvalue()
