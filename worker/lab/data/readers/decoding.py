"""Decoding of image files (PNG, JPEG, ...) into one array."""

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.specs.pictures import PictureError, PictureSizeError, decode
from worker.lab.data.checking import Array, BadSourceError
from worker.lab.data.space import Space

MOST_THREADS = 4
AHEAD, MOST_BYTES_AHEAD = 4, 32 * 2**20
"""Images for each thread, and bytes of all, that are read or decoded before the array takes them."""


class ImageStack:
    """Decodes ``count`` images into one uint8 array ``[N, C, H, W]``; C is 1 if all of them are gray.

    With ``size`` every image is resized to ``size x size`` (bilinear, aspect ratio not kept); without it all must have
    the same size.
    """

    def __init__(self, count: int, size: int | None, space: Space) -> None:
        self._count, self._size, self._space = count, size, space
        self._filled = 0
        self._pixels: NDArray[np.uint8] | None = None
        self._first = ""
        self.first_gray: str | None = None
        self.first_color: str | None = None

    def extend(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Decode files in several threads; the names are for messages. Raises BadSourceError for the first bad one."""
        threads = min(os.cpu_count() or 1, MOST_THREADS)
        waiting: deque[tuple[str, int, Future[NDArray[Any]]]] = deque()
        bytes_ahead = 0
        with ThreadPoolExecutor(threads) as pool:
            try:
                for name, data in files:
                    cost = len(data) + (self._pixels[0].nbytes if self._pixels is not None else 0)
                    bytes_ahead += cost
                    waiting.append((name, cost, pool.submit(self._decode, name, data)))
                    # The first one alone, since it tells how much memory the others take.
                    while waiting and (
                        self._pixels is None
                        or len(waiting) > AHEAD * threads
                        or bytes_ahead > MOST_BYTES_AHEAD
                    ):
                        bytes_ahead -= self._add_next(waiting)
                while waiting:
                    self._add_next(waiting)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _add_next(self, waiting: deque[tuple[str, int, Future[NDArray[Any]]]]) -> int:
        name, cost, decoded = waiting.popleft()
        self._add(name, decoded.result())
        return cost

    def _add(self, name: str, pixels: NDArray[Any]) -> None:
        channels, height, width = pixels.shape
        if self._pixels is None:
            self._pixels, self._first = self._allocate(name, pixels.shape), name
        if self._filled == self._count:
            raise BadSourceError(f"{name}: there are more images than the {self._count} that were declared")
        if (height, width) != self._pixels.shape[2:]:
            expected = f"{self._pixels.shape[3]}x{self._pixels.shape[2]}"
            raise BadSourceError(
                f"required, because {name} is {width}x{height}, but {self._first} is {expected}", "size"
            )
        if channels > self._pixels.shape[1]:
            gray, self._pixels = self._pixels, self._allocate(name, pixels.shape)
            self._pixels[: self._filled] = gray[: self._filled]
        self._pixels[self._filled] = pixels
        self._filled += 1
        if channels == 1:
            self.first_gray = self.first_gray or name
        else:
            self.first_color = self.first_color or name

    def array(self) -> NDArray[np.uint8]:
        """All images added. Raises BadSourceError if there are none."""
        if self._pixels is None:
            raise BadSourceError("there are no images")
        return self._pixels[: self._filled]

    def new_array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array beside that of the images."""
        return self._space.new_array(shape)

    def _allocate(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        if np.prod((self._count, *shape), dtype=float) > self._space.most_bytes:
            raise BadSourceError(
                f"{self._count} images like {name} ({shape[2]}x{shape[1]}) exceed "
                f"{self._space.most_bytes >> 20} MiB; a smaller size is required",
                "size",
            )
        return self._space.new_array((self._count, *shape))

    def _decode(self, name: str, data: bytes) -> NDArray[Any]:
        """uint8 ``[C, H, W]``."""
        try:
            picture = decode(data, resized_to=None if self._size is None else (self._size, self._size))
        except PictureSizeError as error:
            hint = "; larger ones can be resized with size" if self._size is None else ""
            raise BadSourceError(f"{name} {error}{hint}") from error
        except PictureError as error:
            raise BadSourceError(f"{name} {error}") from error
        pixels = np.asarray(picture)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def stack_parts(train: ImageStack, test: ImageStack | None = None) -> tuple[Array, Array | None]:
    """The arrays of the training and the test images with the same number of channels.

    Gray test images of a color dataset get three channels. Raises BadSourceError for a color image in the test part of
    a gray dataset.
    """
    x, x_test = train.array(), None if test is None else test.array()
    if test is None or x_test is None:
        return x, None
    if train.first_color is None and test.first_color is not None:
        raise BadSourceError(
            f"{test.first_color} is in color, but {train.first_gray} and all other training images are gray; "
            "convert either"
        )
    if train.first_color is not None and test.first_color is None:
        gray, x_test = x_test, test.new_array((len(x_test), 3, *x_test.shape[2:]))
        x_test[:] = gray
    return x, x_test
