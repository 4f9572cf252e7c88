"""Uploaded patterns."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.specs.facts import DatasetFacts
from worker.lab.contracts import SpecError


def decode_pattern(png: str, facts: DatasetFacts) -> Tensor:
    """The picture ``attack.pattern_png`` in base64 as uint8 ``[C, H, W]``; raises SpecError if it cannot be read."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("L" if facts.channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise SpecError(f"attack.pattern_png: this PNG cannot be read ({error})") from error
    shape = (facts.height, facts.width, facts.channels)
    return torch.from_numpy(pixels.reshape(shape).transpose(2, 0, 1).copy())
