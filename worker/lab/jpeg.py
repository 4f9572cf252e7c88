"""JPEG compression of batches of images, computed instead of encoded (ITU-T T.81)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.attacks.ftrojan import from_chroma, to_chroma
from worker.lab.attacks.low_frequency import cosine_basis

BLOCK = 8
# Tables K.1 and K.2 of ITU-T T.81.
LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
)  # fmt: skip


def compress_as_jpeg(x: Tensor, quality: int) -> Tensor:
    """Float images in [0, 1] ``[N, C, H, W]`` after compression with ``quality``, 1 to 49, as libjpeg counts it.

    Color is subsampled to a quarter, and interpolated. Images that have no three channels are gray.
    """
    height, width = x.shape[2:]
    multiple = 2 * BLOCK
    padded = F.pad(255 * x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    if x.shape[1] != 3:
        out = quantize(padded, LUMA, quality)
    else:
        converted = to_chroma(padded)
        color = quantize(F.avg_pool2d(converted[:, 1:], 2), CHROMA, quality)
        color = F.interpolate(color, scale_factor=2, mode="bilinear", align_corners=False)
        out = from_chroma(torch.cat([quantize(converted[:, :1], LUMA, quality), color], 1))
    return out[:, :, :height, :width].round().clamp(0, 255) / 255


def quantize(planes: Tensor, table: tuple[int, ...], quality: int) -> Tensor:
    """Gray levels ``[N, C, H, W]``, sides multiples of eight, with the coefficients of each block rounded."""
    steps = planes.new_tensor(table).view(BLOCK, BLOCK)
    steps = ((steps * (5000 // quality) + 50) / 100).floor().clamp(1, 255)
    basis = cosine_basis(BLOCK, BLOCK).to(planes.device, planes.dtype) * (2 / BLOCK) ** 0.5
    basis[0] /= 2**0.5  # orthonormal
    n, c, height, width = planes.shape
    blocks = (planes - 128).view(n, c, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    coefficients = (basis @ blocks @ basis.T / steps).round() * steps
    restored: Tensor = basis.T @ coefficients @ basis
    return restored.transpose(3, 4).reshape(n, c, height, width) + 128
