"""Visibility of a trigger: PSNR, SSIM, norms and the share of pixels changed, all on gray levels 0 to 255."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.compute import images_at_once
from worker.lab.data.streamed import Images

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels (Wang et al. 2004)
CHUNK, FLOATS = 512, 2**20  # images at a time, and values of large ones: SSIM makes some twenty copies


def measure_stealth(clean: Images, changed: Images) -> dict[str, float | None]:
    """Means over the images of uint8 ``[N, C, H, W]``; every value is None if there are no images.

    ``psnr`` in decibels, over the images that differ (None if none does); ``ssim`` 1 for equal images; ``l_inf`` and
    ``l_2`` over a whole image; ``changed_pixels`` the share of pixels of which any channel differs.
    """
    if not len(clean):
        return dict.fromkeys(("psnr", "ssim", "l_inf", "l_2", "changed_pixels"))
    columns: dict[str, list[Tensor]] = {n: [] for n in ("square", "ssim", "l_inf", "l_2", "changed_pixels")}
    size = images_at_once(clean, CHUNK, FLOATS)
    for a, b in zip(clean.split(size), changed.split(size), strict=True):
        x, y = a.float(), b.float()
        difference = y - x
        flat = difference.flatten(1)
        columns["square"].append(flat.square().mean(1))
        columns["ssim"].append(ssim(x, y))
        columns["l_inf"].append(flat.abs().amax(1))
        columns["l_2"].append(flat.square().sum(1).sqrt())
        columns["changed_pixels"].append((difference != 0).any(1).float().mean((1, 2)))
    whole = {name: torch.cat(parts).double() for name, parts in columns.items()}
    square = whole.pop("square")
    differing = square[square > 0]
    psnr = (10 * torch.log10(255**2 / differing)).mean().item() if len(differing) else None
    return {"psnr": psnr} | {name: values.mean().item() for name, values in whole.items()}


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of float ``[N, C, H, W]``, ``[N]``, averaged over channels.

    Gaussian window of 11 x 11 with deviation 1.5, around every pixel; on smaller images the largest odd window that
    fits. K1 = 0.01, K2 = 0.03. Images are continued by reflection, since windows inside the image hardly see its
    corners, where many triggers are.
    """
    channels, side = x.shape[1], min(x.shape[2:])
    size = min(WINDOW, side - 1 + side % 2)
    offsets = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    kernel = torch.exp(-(offsets**2) / (2 * DEVIATION**2))
    kernel /= kernel.sum()
    window = (kernel[:, None] * kernel[None, :]).expand(channels, 1, size, size).contiguous()

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.pad(values, [size // 2] * 4, mode="reflect"), window, groups=channels)

    # Equation 13 of Wang et al. 2004; sections III.B and III.C for window and constants.
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, covariance = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    values = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return values.mean((1, 2, 3))
