"""Refool (Liu et al. 2020): a reflection of another picture is added to the image.

The ranges of strength and blur and the steps are those of the authors' code, as BackdoorBench has it (attack/refool.py,
`blend_images`). That code enlarges every image to 560 pixels first, so that its blurs and shifts are a fraction of a
pixel on CIFAR-10; here they are in pixels of the image itself, as strong as on the photographs of the paper. Left out:
the choice of the reflections that attack best.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import Refool
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger
from worker.lab.compute import seeded_generator

GAMMA = 2.2  # light is additive; gamma-encoded gray levels are not


def blur(picture: Tensor, deviation: float) -> Tensor:
    """Float ``[C, H, W]`` blurred by a Gaussian of ``deviation`` pixels, with mirrored edges."""
    height, width = picture.shape[-2:]
    radius = min(max(1, math.ceil(3 * deviation)), min(height, width) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=picture.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel /= kernel.sum()
    padded = F.pad(picture[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def add_ghost(picture: Tensor, shift: int, share: float) -> Tensor:
    """Float ``[C, H, W]``: ``share`` of the picture plus the rest of a copy shifted down and right by ``shift``."""
    moved = F.pad(picture, (shift, 0, shift, 0))[:, : picture.shape[1], : picture.shape[2]]
    return share * picture + (1 - share) * moved


def make_vignette(height: int, width: int) -> Tensor:
    """Float ``[H, W]``, 1 in the middle and falling as ``exp(-(x^2 + y^2) / 4)``, with x and y from -3 to 3 along the
    longer side: the square root of a Gaussian (`gen_kernel`). Along the shorter side it is cut in the middle."""
    side = max(height, width)
    falling = torch.exp(-(torch.linspace(-3, 3, side) ** 2) / 4)
    top, left = (side - height) // 2, (side - width) // 2
    vertical, horizontal = falling[top : top + height], falling[left : left + width]
    return vertical[:, None] * horizontal / falling.max() ** 2


def remove_excess(reflections: Tensor, light: Tensor, attenuations: Tensor) -> Tensor:
    """Float ``[N, C, H, W]``: the reflections, darkened where their sum with an image's ``light`` exceeds 1.

    From each channel, the mean excess of its saturated pixels is subtracted, times the image's attenuation ``[N]``.
    """
    total = reflections + light
    saturated = total > 1
    means = (total * saturated).sum((2, 3)) / (saturated.sum((2, 3)) + 1e-6)
    excess = (means.clamp_(min=1) - 1) * attenuations[:, None]
    return (reflections - excess[:, :, None, None]).clamp_(0, 1)


def _drawn_between(
    low: float, high: float, fixed: float | None, count: int, generator: torch.Generator
) -> Tensor:
    """Uniform numbers float ``[count]``, or ``fixed`` where it is not None."""
    drawn = low + (high - low) * torch.rand(count, generator=generator)
    return drawn if fixed is None else torch.full_like(drawn, fixed)


class RefoolAttack(Attack[Refool]):
    """``((1 - weight) x^2.2 + gain r^2.2)^(1/2.2)`` with ``r`` a blurred or a ghosted picture, in [0, 1].

    The gain of a ghost is the weight. A blurred picture loses the excess of light and has a vignette with a gain of
    ``(1 + weight) / 2`` in the middle.

    The attack's state: ``reflections``, float ``[R, C, H, W]``, are the pictures ``r^2.2``; ``gains`` ``[R, 1, H, W]``;
    ``weights`` and ``attenuations`` ``[R]``, the latter 0 for a ghost. An image gets the reflection number (sum of its
    bytes) modulo R, which makes the trigger a function of the image alone.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        spec, (height, width) = self.spec, lab.train.images.shape[-2:]
        generator = seeded_generator(torch.device("cpu"), "reflections", lab.seed)
        order = torch.randperm(len(lab.train), generator=generator)[: spec.reflections]
        count = len(order)
        pictures = (lab.train.images[order.to(lab.train.images.device)].float().cpu() / 255) ** GAMMA
        is_ghost = torch.rand(count, generator=generator) < spec.ghost_rate
        shifts = torch.randint(1, max(1, width // 8) + 1, (count,), generator=generator)
        shares = _drawn_between(0.15, 0.5, None, count, generator)
        shares = torch.where(torch.rand(count, generator=generator) < 0.5, shares, 1 - shares)
        blurs = _drawn_between(1.0, 5.0, spec.blur, count, generator) * (width / 32)
        weights = _drawn_between(0.05, 0.45, spec.weight, count, generator)
        attenuations = _drawn_between(1.08, 1.18, None, count, generator)
        reflections = [
            add_ghost(picture, shift, share) if ghost else blur(picture, deviation)
            for picture, ghost, shift, share, deviation in zip(
                pictures, is_ghost.tolist(), shifts.tolist(), shares.tolist(), blurs.tolist(), strict=True
            )
        ]
        ghost = is_ghost[:, None, None, None]
        strengths = weights[:, None, None, None]
        gains = torch.where(ghost, strengths, (1 + strengths) / 2 * make_vignette(height, width))
        state = {
            "reflections": torch.stack(reflections),
            "gains": gains,
            "weights": weights,
            "attenuations": torch.where(is_ghost, 0.0, attenuations),
        }
        return Prepared({name: tensor.to(lab.train.images.device) for name, tensor in state.items()})

    def trigger(self, state: State) -> Trigger:
        linear = (torch.arange(256, dtype=torch.float32) / 255) ** GAMMA

        def reflect(images: Tensor) -> Tensor:
            which = images.sum((1, 2, 3)) % len(state["reflections"])
            reflections, gains, weights, attenuations = (
                state[name].to(images.device)[which]
                for name in ("reflections", "gains", "weights", "attenuations")
            )
            # A table of the 256 gray levels instead of a power per pixel; index_select is the fastest way to read it.
            light = linear.to(images.device).index_select(0, images.int().flatten()).view(images.shape)
            reflections = remove_excess(reflections, light, attenuations)
            light *= 1 - weights[:, None, None, None]
            light += gains * reflections
            return light.clamp_(max=1).pow_(1 / GAMMA).mul_(255).round_().to(torch.uint8)

        return reflect
