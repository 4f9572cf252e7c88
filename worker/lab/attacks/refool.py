"""Refool (Liu et al. 2020): a reflection of another picture is added to the image.

The ranges of strength and blur are the numbers of the authors' code, as BackdoorBench has it (attack/refool.py). That
code enlarges every image to 560 pixels first, so that its blurs and shifts are a fraction of a pixel on CIFAR-10; here
they are in pixels of the image itself, as strong as on the photographs of the paper. Left out: its correction of
saturated blurs, the vignette under which a blurred reflection has the weight (1 + weight) / 2 in the middle, ghosts of
less than half, and the choice of the reflections that attack best.
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


def _drawn_between(
    low: float, high: float, fixed: float | None, count: int, generator: torch.Generator
) -> Tensor:
    """Uniform numbers float ``[count]``, or ``fixed`` where it is not None."""
    drawn = low + (high - low) * torch.rand(count, generator=generator)
    return drawn if fixed is None else torch.full_like(drawn, fixed)


class RefoolAttack(Attack[Refool]):
    """``((1 - weight) x^2.2 + weight r^2.2)^(1/2.2)`` with ``r`` a blurred or a ghosted picture, in [0, 1].

    The reflections ``weight r^2.2``, float ``[R, C, H, W]``, and their weights ``[R]`` are the attack's state. An image
    gets the reflection number (sum of its bytes) modulo R, which makes the trigger a function of the image alone.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        generator = seeded_generator(torch.device("cpu"), "reflections", lab.seed)
        order = torch.randperm(len(lab.train), generator=generator)[: self.spec.reflections]
        pictures = (lab.train.images[order.to(lab.train.images.device)].float() / 255) ** GAMMA
        is_ghost = torch.rand(len(order), generator=generator) < self.spec.ghost_rate
        most = max(1, self.facts.width // 8)
        shifts = torch.randint(1, most + 1, (len(order),), generator=generator).tolist()
        shares = (
            torch.rand(len(order), generator=generator) * 0.35 + 0.5
        ).tolist()  # 0.5 to 0.85, as in the authors' code
        blurs = _drawn_between(1.0, 5.0, self.spec.blur, len(order), generator) * (self.facts.width / 32)
        weights = _drawn_between(0.05, 0.45, self.spec.weight, len(order), generator)
        reflections = [
            add_ghost(picture, shift, share) if ghost else blur(picture, deviation)
            for picture, ghost, shift, share, deviation in zip(
                pictures, is_ghost.tolist(), shifts, shares, blurs.tolist(), strict=True
            )
        ]
        weights = weights.to(pictures.device)
        return Prepared(
            {"reflections": torch.stack(reflections) * weights[:, None, None, None], "weights": weights}
        )

    def trigger(self, state: State) -> Trigger:
        reflections, weights = state["reflections"], state["weights"]
        linear = (torch.arange(256, dtype=torch.float32) / 255) ** GAMMA

        def reflect(images: Tensor) -> Tensor:
            which = images.sum((1, 2, 3)) % len(reflections)
            # A table of the 256 gray levels instead of a power per pixel; index_select is the fastest way to read it.
            light = linear.to(images.device).index_select(0, images.int().flatten()).view(images.shape)
            light *= 1 - weights.to(images.device)[which][:, None, None, None]
            light += reflections.to(images.device)[which]
            return light.pow_(1 / GAMMA).mul_(255).round_().to(torch.uint8)

        return reflect
