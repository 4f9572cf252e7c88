"""Decoding of image files (PNG, JPEG, ...) into one array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.specs.pictures import PictureError, decode
from worker.lab.data.checking import BadSourceError

MAX_TOTAL_BYTES = 16 * 2**30
"""Default of the largest accepted decoded dataset, in bytes."""


class ImageStack:
    """Decodes ``count`` images into one uint8 array ``[N, C, H, W]``; C is 1 if all of them are gray.

    With ``size`` every image is resized to ``size x size`` (bilinear, aspect ratio not kept); without it all must have
    the same size. Transparency is ignored.
    """

    def __init__(self, count: int, size: int | None, most_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._count, self._size, self._most_bytes = count, size, most_bytes
        self._filled = 0
        self._gray = True
        self._pixels: NDArray[np.uint8] | None = None
        self._first = ""

    def add(self, name: str, data: bytes) -> None:
        """Decode ``data``; ``name`` is for messages. Raises BadSourceError."""
        pixels = self._decode(name, data)
        if self._pixels is None:
            shape = (self._count, 3, *pixels.shape[:2])
            if np.prod(shape, dtype=float) > self._most_bytes:
                raise BadSourceError(
                    f"{self._count} images like {name} ({_size(pixels)}) exceed "
                    f"{self._most_bytes >> 20} MiB; a smaller size is required",
                    "size",
                )
            self._pixels, self._first = np.empty(shape, np.uint8), name
        if self._filled == self._count:
            raise BadSourceError(f"{name}: there are more images than the {self._count} that were declared")
        height, width = self._pixels.shape[2:]
        if pixels.shape[:2] != (height, width):
            raise BadSourceError(
                f"required, because {name} is {_size(pixels)}, but {self._first} is {width}x{height}",
                "size",
            )
        self._pixels[self._filled] = pixels.transpose(2, 0, 1)
        self._filled += 1

    def array(self) -> NDArray[np.uint8]:
        """All images added. Raises BadSourceError if there are none."""
        if self._pixels is None:
            raise BadSourceError("there are no images")
        return self._pixels[: self._filled, : 1 if self._gray else 3]

    def _decode(self, name: str, data: bytes) -> NDArray[Any]:
        try:
            picture = decode(data)
        except PictureError as error:
            raise BadSourceError(f"{name} {error}") from error
        if picture.mode.startswith(("I", "F")):
            raise BadSourceError(
                f"{name} has more than 8 bits a channel ({picture.mode}); convert it to 8 bits"
            )
        self._gray = self._gray and picture.mode in ("L", "1", "LA")
        picture = picture.convert("RGB")
        if self._size is not None and picture.size != (self._size, self._size):
            picture = picture.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(picture)


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
