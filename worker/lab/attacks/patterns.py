"""Patterns over the whole image."""

import base64

import numpy as np
import torch
from torch import Tensor

from app.specs.attacks.whole_image import BlendedAttack
from app.specs.facts import DatasetFacts
from app.specs.pictures import PictureError, decode
from worker.lab.attacks.base import State
from worker.lab.compute import seeded_generator
from worker.lab.contracts import SpecError
from worker.lab.data.streamed import Images


def choose_pattern(spec: BlendedAttack, images: Images, facts: DatasetFacts) -> Tensor:
    """uint8 ``[C, H, W]``: noise drawn from ``pattern_seed``, a training image, or the uploaded picture."""
    if spec.pattern_index is not None:
        return images[spec.pattern_index].clone()
    if spec.pattern_png is not None:
        return decode_pattern(spec.pattern_png, facts)
    generator = seeded_generator(torch.device("cpu"), "blend pattern", spec.pattern_seed)
    shape = (facts.channels, facts.height, facts.width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def choose_test_pattern(spec: BlendedAttack, facts: DatasetFacts) -> State:
    """The picture at test time, ``test_pattern`` and ``test_weight``; empty if it is that of training."""
    if spec.test_pattern_png is None:
        return {}
    pattern, weight = decode_picture(spec.test_pattern_png, facts, "test_pattern_png")
    return {"test_pattern": pattern, "test_weight": weight}


def choose_weight(spec: BlendedAttack, facts: DatasetFacts) -> State:
    """Opacity of each pixel of the uploaded picture, ``weight``; empty if there is none, or it is opaque."""
    if spec.pattern_png is None:
        return {}
    _, weight = decode_picture(spec.pattern_png, facts)
    return {} if weight.min() == 1 else {"weight": weight}


def decode_pattern(png: str, facts: DatasetFacts, name: str = "pattern_png") -> Tensor:
    """The picture in the field ``name``, in base64, as uint8 ``[C, H, W]``; raises SpecError if it cannot be read."""
    pixels, _ = decode_picture(png, facts, name)
    return pixels


def decode_picture(png: str, facts: DatasetFacts, name: str = "pattern_png") -> tuple[Tensor, Tensor]:
    """The picture in the field ``name``, in base64: its colors uint8 ``[C, h, w]``, and the opacity of each pixel,
    float ``[1, h, w]`` in [0, 1]. Raises SpecError if it cannot be read."""
    try:
        picture = decode(base64.b64decode(png), formats=("PNG",), keep_alpha=True)
    except PictureError as error:
        raise SpecError(f"attack.{name}: the file {error}") from error
    pixels = np.asarray(picture.convert("LA" if facts.channels == 1 else "RGBA")).transpose(2, 0, 1)
    return torch.from_numpy(pixels[:-1].copy()), torch.from_numpy(pixels[-1:].copy()).float() / 255
