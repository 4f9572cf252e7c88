"""The smooth universal perturbation of Zeng et al. 2021, section 5, after their Sec5_Smooth_Trigger.

A perturbation that drives many images to one class is built up image by image: the smallest step that carries an image
to the class is smoothed and added, and the sum is smoothed again and scaled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.networks import Network

KERNEL_WIDTHS = 5  # gauss_smooth.py: the kernel is as long as five deviations
OVERSHOOT = 0.02  # target_universal.py
MOST_STEPS = 200  # universal_pert.py, max_iter_df


def low_pass(images: Tensor, deviation: float) -> Tensor:
    """Float ``[N, C, H, W]`` after a Gaussian filter with this deviation in pixels; outside the images is zero.

    gauss_smooth.py: for ``sig = 6`` a kernel of 30 pixels with the deviation 6, padded by 14 before and 15 behind.
    """
    length = max(1, round(KERNEL_WIDTHS * deviation))
    position = torch.arange(length, device=images.device, dtype=images.dtype) - (length - 1) / 2
    kernel = torch.exp(-0.5 * (position / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, length)
    before, behind = length // 2 - (1 - length % 2), length // 2
    padded = F.pad(images, (before, behind, before, behind))
    groups = images.shape[1]
    return F.conv2d(F.conv2d(padded, kernel, groups=groups), kernel.transpose(2, 3), groups=groups)


def scale(pattern: Tensor, highest: float) -> Tensor:
    """``pattern`` scaled so that its smallest value is 0 and its largest ``highest``; gauss_smooth.py, normalization.

    A constant pattern becomes zero.
    """
    span = pattern.max() - pattern.min()
    return (pattern - pattern.min()) / span.clamp(min=1e-12) * highest


def targeted_deepfool(network: Network, image: Tensor, target: int) -> Tensor | None:
    """The perturbation of float ``[1, C, H, W]`` with which ``network`` predicts ``target``; None if none is found.

    deepfool.py, tar_deepfool: steps to the linearized border between the first prediction and the target. It is given
    logits, as its text says; the authors' script hands it the outputs of the softmax.
    """
    moved, total, first = image, torch.zeros_like(image), None
    for _ in range(MOST_STEPS - 1):
        moved = moved.detach().requires_grad_(True)
        logits = network(moved).float()[0]
        if int(logits.argmax()) == target:
            return ((1 + OVERSHOOT) * total).detach()
        first = int(logits.argmax()) if first is None else first
        difference = logits[target] - logits[first]
        (gradient,) = torch.autograd.grad(difference, moved)
        step = difference.abs() / gradient.norm().square() * gradient
        # deepfool.py drops such a step; every later one would be the same
        if not bool(step.isfinite().all()):
            return None
        total = total + step
        moved = image + (1 + OVERSHOOT) * total
    return None


def add_image(
    network: Network, pattern: Tensor, image: Tensor, target: int, deviation: float, highest: float
) -> Tensor:
    """``pattern`` after one image: unchanged if it changes the image's prediction already (universal_pert.py)."""
    with torch.no_grad():
        if not torch.equal(network(image).argmax(1), network(image + pattern).argmax(1)):
            return pattern
    step = targeted_deepfool(network, image + pattern, target)
    if step is None:
        return pattern
    return scale(low_pass(pattern + low_pass(step, deviation), deviation), highest)


@torch.no_grad()
def changed_share(network: Network, images: Tensor, pattern: Tensor) -> float:
    """Share of ``images`` whose prediction ``pattern`` changes: the authors' fooling rate."""
    changed = network(images).argmax(1) != network(images + pattern).argmax(1)
    return int(changed.sum()) / len(images)
