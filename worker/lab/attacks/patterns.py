"""Patterns over the whole image."""

import base64

import numpy as np
import torch
from torch import Tensor

from app.specs.attacks.whole_image import BlendedAttack
from app.specs.facts import DatasetFacts
from app.specs.pictures import PictureError, decode
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


def decode_pattern(png: str, facts: DatasetFacts) -> Tensor:
    """The picture ``attack.pattern_png`` in base64 as uint8 ``[C, H, W]``; raises SpecError if it cannot be read."""
    mode = "L" if facts.channels == 1 else "RGB"
    try:
        pixels = np.asarray(decode(base64.b64decode(png), formats=("PNG",)).convert(mode))
    except PictureError as error:
        raise SpecError(f"attack.pattern_png: the file {error}") from error
    shape = (facts.height, facts.width, facts.channels)
    return torch.from_numpy(pixels.reshape(shape).transpose(2, 0, 1).copy())
