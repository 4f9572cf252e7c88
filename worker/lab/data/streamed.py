"""Images that are too large for memory: they stay on disk and reach the device batch by batch.

`StreamedImages` has what attacks and defenses use of a tensor: ``len``, ``shape``, ``device``, ``split``, and indexing,
which copies to the device what it selects. Subsets and poisoned sets are rows of it and cost no copy. Equal
images give equal numbers, bit for bit, from memory or from disk.
"""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.lab.data.space import Space
from worker.lab.host_memory import read_memory

LARGEST_SHARE = 1 / 3
"""Share of a memory above which images are streamed: beside the clean images there are their poisoned copies."""
AHEAD = 2  # batches that are read from disk while one is used
READ_IMAGES = 32  # at a time, where all images are read once


class StreamedImages:
    """uint8 images ``[N, C, H, W]`` on disk. ``device`` is where what is read goes."""

    dtype = torch.uint8

    def __init__(
        self, sources: tuple[Tensor, ...], rows: Tensor, device: torch.device, folder: Path | None
    ) -> None:
        """``sources`` are on the CPU, mapped from files or not; ``rows`` int64 ``[N]`` count through all of them.

        ``folder`` is where `collect_like` puts what is computed from the images; None: into memory.
        """
        self._sources, self._rows, self.device, self.folder = sources, rows, device, folder
        self._ends = list(accumulate(len(source) for source in sources))

    @classmethod
    def over(cls, source: Tensor, folder: Path | None) -> "StreamedImages":
        """All images of ``source``, for the CPU until `to` names another device."""
        return cls((source,), torch.arange(len(source)), torch.device("cpu"), folder)

    @classmethod
    def of_file(cls, images: NDArray[np.uint8], folder: Path) -> "StreamedImages":
        """All images of an array that is mapped from a file; they are only read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return cls.over(torch.from_numpy(images), folder)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), *self._sources[0].shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """A copy of the selected images, on the device."""
        rows = self._select(index)
        return self._send(self._read(rows[None]))[0] if rows.ndim == 0 else self._send(self._read(rows))

    def rows(self, index: Tensor) -> "StreamedImages":
        """The selected images, still on disk."""
        return StreamedImages(self._sources, self._select(index), self.device, self.folder)

    def to(self, device: torch.device) -> "StreamedImages":
        return StreamedImages(self._sources, self._rows, device, self.folder)

    def replaced(self, changes: Sequence[tuple[Tensor, Tensor]]) -> "StreamedImages":
        """These images with others in some places: pairs of rows ``[K]`` and images ``[K, C, H, W]``."""
        sources, rows = self._sources, self._rows.clone()
        for index, images in changes:
            start = sum(map(len, sources))
            rows[index.cpu()] = torch.arange(start, start + len(images))
            sources = (*sources, images.cpu())
        return StreamedImages(sources, rows, self.device, self.folder)

    def joined(self, other: "StreamedImages") -> "StreamedImages":
        """These images and then those of ``other``."""
        rows = torch.cat([self._rows, other._rows + self._ends[-1]])
        return StreamedImages(self._sources + other._sources, rows, self.device, self.folder)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in batches of ``size``, on the device."""
        return self._stream(self._rows.split(size))

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each of ``batches``, rows ``[B]``, on the device."""
        # One transfer of all rows: one for each batch would have the device wait every time.
        rows = self._select(torch.cat(list(batches)))
        return self._stream(rows.split([len(batch) for batch in batches]))

    def on_cpu(self) -> Tensor:
        """All images as one tensor on the CPU: no copy if they are all of one source."""
        whole = len(self._sources) == 1 and torch.equal(self._rows, torch.arange(len(self._sources[0])))
        return self._sources[0] if whole else self._read(self._rows)

    @cached_property
    def histograms(self) -> Tensor:
        """How many pixels of each channel have each gray level, int64 ``[C, 256]``."""
        counts = torch.zeros(self.shape[1], 256, dtype=torch.int64)
        for rows in self._rows.split(READ_IMAGES):
            counts += _histograms(self._read(rows))
        return counts

    def _select(self, index: int | slice | Tensor) -> Tensor:
        return self._rows[index.cpu() if isinstance(index, Tensor) else index]

    def _read(self, rows: Tensor) -> Tensor:
        # Pinned memory is copied to a GPU while that computes.
        out = torch.empty(
            (len(rows), *self.shape[1:]), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        if len(self._sources) == 1:
            return torch.index_select(self._sources[0], 0, rows, out=out)
        of = torch.bucketize(rows, torch.tensor(self._ends), right=True)
        for i, source in enumerate(self._sources):
            places = (of == i).nonzero().flatten()
            out.index_copy_(0, places, source.index_select(0, rows[places] - (self._ends[i] - len(source))))
        return out

    def _send(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True)

    def _stream(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each part of the rows; the next ones are read by a thread in the meantime."""
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for rows in parts:
                waiting.append(reader.submit(self._read, rows))
                if len(waiting) > AHEAD:
                    yield self._send(waiting.popleft().result())
            while waiting:
                yield self._send(waiting.popleft().result())


Images = Tensor | StreamedImages
"""uint8 ``[N, C, H, W]`` on the device, or streamed to it."""


def iterate_batches(images: Images, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of each of ``batches``, rows ``[B]``."""
    if isinstance(images, StreamedImages):
        return images.batches(batches)
    # On a CPU `index_select` copies whole images, indexing single pixels: five times as long at 224 pixels.
    select = images.index_select if images.device.type == "cpu" else None
    return (select(0, batch) if select else images[batch] for batch in batches)


def count_levels(images: Images) -> Tensor:
    """How many pixels of each channel have each gray level, int64 ``[C, 256]`` on the CPU."""
    return images.histograms if isinstance(images, StreamedImages) else _histograms(images)


def _histograms(images: Tensor) -> Tensor:
    channels = (images[:, channel].flatten().cpu() for channel in range(images.shape[1]))
    return torch.stack([torch.bincount(values, minlength=256) for values in channels])


def stored(images: Images) -> Tensor:
    """The images as one tensor: on the CPU if they are streamed."""
    return images.on_cpu() if isinstance(images, StreamedImages) else images


def select_rows(images: Images, index: Tensor) -> Images:
    """Some of the images: a copy of those in memory, no copy of streamed ones."""
    return images.rows(index) if isinstance(images, StreamedImages) else images[index]


def change_rows(images: Images, changes: Sequence[tuple[Tensor, Tensor]]) -> Images:
    """The images with others in some places, pairs of rows and images; those in memory are changed in place."""
    if isinstance(images, StreamedImages):
        return images.replaced(changes)
    for places, changed in changes:
        images[places] = changed.to(images.device)
    return images


def join(first: Images, second: Images) -> Images:
    """The images of both, which are parts of the same set."""
    if isinstance(first, StreamedImages):
        assert isinstance(second, StreamedImages)
        return first.joined(second)
    assert isinstance(second, Tensor)
    return torch.cat([first, second])


def collect_like(images: Images, count: int, parts: Iterable[Tensor]) -> Images:
    """``count`` new images, given in parts, kept where ``images`` are: on the device, or on disk."""
    shape = (count, *images.shape[1:])
    if isinstance(images, StreamedImages):
        out = torch.from_numpy(Space(folder=images.folder).new_array(shape))
    else:
        out = torch.empty(shape, dtype=torch.uint8, device=images.device)
    done = 0
    for part in parts:
        out[done : done + len(part)] = part
        done += len(part)
    return (
        StreamedImages.over(out, images.folder).to(images.device)
        if isinstance(images, StreamedImages)
        else out
    )


def exceeds_memory(size: int, device: torch.device) -> bool:
    """Whether images of ``size`` bytes are too large to be kept in the memory of ``device``."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
    elif memory := read_memory():
        total = memory.total
    else:
        return False
    return size > LARGEST_SHARE * total
