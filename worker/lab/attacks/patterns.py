"""Uploaded patterns."""

import base64

import numpy as np
import torch
from torch import Tensor

from app.specs.facts import DatasetFacts
from app.specs.pictures import PictureError, decode
from worker.lab.contracts import SpecError


def decode_pattern(png: str, facts: DatasetFacts) -> Tensor:
    """The picture ``attack.pattern_png`` in base64 as uint8 ``[C, H, W]``; raises SpecError if it cannot be read."""
    mode = "L" if facts.channels == 1 else "RGB"
    try:
        pixels = np.asarray(decode(base64.b64decode(png), formats=("PNG",)).convert(mode))
    except PictureError as error:
        raise SpecError(f"attack.pattern_png: the file {error}") from error
    shape = (facts.height, facts.width, facts.channels)
    return torch.from_numpy(pixels.reshape(shape).transpose(2, 0, 1).copy())
