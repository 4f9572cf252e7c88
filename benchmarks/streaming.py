"""Images a second that reach the training loop, in memory and mapped from disk.

    python benchmarks/streaming.py [--images 20000] [--side 224] [--batch 64] [--folder DIR]

Writes a dataset of random pixels (3 GB by default), reads it in random batches in three ways, and deletes it: from
memory; mapped, with the file in the system's cache; mapped, with the cache emptied before, so from the disk.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from worker.lab.data import files
from worker.lab.data.space import Space
from worker.lab.data.streamed import Images, StreamedImages, iterate_batches


def measure(images: Images, batch: int) -> float:
    """Images a second in a random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    for pixels in iterate_batches(images, order.split(batch)):
        assert len(pixels)
    return len(images) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        shape = (options.images, 3, options.side, options.side)
        x, y = Space(folder=folder).new_array(shape), np.arange(options.images) % 1000
        random = np.random.default_rng(0)
        for start in range(0, len(x), 256):
            x[start : start + 256] = random.integers(0, 256, x[start : start + 256].shape, np.uint8)
        path = folder / "images.safetensors"
        names = tuple(map(str, range(1000)))
        files.write(path, x_train=x, y_train=y, x_test=x[:1000], y_test=y[:1000], class_names=names)
        print(f"{x.nbytes / 1e9:.1f} GB, batches of {options.batch}")
        print(f"in memory             {measure(torch.from_numpy(x), options.batch):8.0f} images/s")
        del x
        mapped, _, _ = files.read(path, mapped=True)
        streamed = StreamedImages.of_file(mapped["x_train"], folder)
        print(f"mapped, in the cache  {measure(streamed, options.batch):8.0f} images/s")
        del mapped, streamed
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        again = files._map_tensors(path)["x_train"]
        rate = measure(StreamedImages.of_file(again, folder), options.batch)
        print(f"mapped, from the disk {rate:8.0f} images/s")


if __name__ == "__main__":
    main()
