"""Image files by class: ``class/x.png``, or ``train/class/x.png`` and ``test/...``.

A folder that came poisoned may have ``test_triggered/class/x.png``, and ``poisoned.txt``, which lists the poisoned
training images.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np

from worker.lab.data.checking import Array, BadSourceError, Source
from worker.lab.data.readers.decoding import ImageStack, stack_parts
from worker.lab.data.readers.splits import SPLITS, TRAIN, TRIGGERED, choose_splits, describe_skipped
from worker.lab.data.readers.trees import Tree
from worker.lab.data.space import Space

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff",
}  # fmt: skip
FOREIGN_SUFFIXES = {
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".svg",
    ".ico",
    ".tga",
    ".psd",
    ".npy",
    ".raw",
    ".dng",
}
"""Files that are pictures too: leaving them out would make the dataset another one."""

POISONED = "poisoned.txt"
"""Lists the poisoned training images, one path a line, as from the folder that holds this file."""

Named = tuple[PurePosixPath, PurePosixPath]
"""A path below any wrapping folder, and the same in the source."""


def read(tree: Tree, size: int | None, space: Space) -> Source:
    """The images in ``tree``. Raises BadSourceError."""
    images = [path for path in tree.files if path.suffix.lower() in SUFFIXES]
    others = [path for path in tree.files if path.suffix.lower() not in SUFFIXES and path.name != POISONED]
    foreign = next((path for path in others if path.suffix.lower() in FOREIGN_SUFFIXES), None)
    if foreign is not None:
        raise BadSourceError(f"{foreign} is not accepted; allowed are {', '.join(sorted(SUFFIXES))}")
    if not images:
        raise BadSourceError(f"{tree.name} has no images in folders by class")
    wrapper = _wrapper(images)
    parts = _by_split(_below(wrapper, images))
    _reject_empty_classes(parts, _below(wrapper, tree.folders))
    train, test, notes = choose_splits(parts, tree.name, "images")
    names = _class_order({path.parent.name for path, _ in [*train, *(test or [])]})
    stacks = [_stack(tree, files, size, space) for files in (train, test) if files is not None]
    x, x_test = stack_parts(*stacks)
    given = _read_flags(tree, PurePosixPath(*wrapper) / POISONED, [full for _, full in train])
    if TRIGGERED in parts:
        triggered = parts[TRIGGERED]
        for path, full in triggered:
            if path.parent.name not in names:
                raise BadSourceError(f"{full}: {path.parent.name} is not a class of the training images")
        given["y_test_triggered"] = _labels(triggered, names)
        _, x_triggered = stack_parts(stacks[0], _stack(tree, triggered, size, space))
        assert x_triggered is not None
        given["x_test_triggered"] = x_triggered
    return Source(
        x,
        _labels(train, names),
        x_test,
        None if test is None else _labels(test, names),
        names,
        notes=[*notes, *describe_skipped(others, "images")],
        given=given,
    )


def _read_flags(tree: Tree, path: PurePosixPath, train: list[PurePosixPath]) -> dict[str, Array]:
    """Which of the training images the file at ``path`` lists, if there is one. Raises BadSourceError."""
    stray = next((other for other in tree.files if other.name == POISONED and other != path), None)
    if stray is not None:
        raise BadSourceError(f"{stray}: {POISONED} belongs beside the folders of the images, as {path}")
    if path not in tree.files:
        return {}
    row_of = {full: row for row, full in enumerate(train)}
    flags = np.zeros(len(train), bool)
    try:
        lines = tree.read(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise BadSourceError(f"{path} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = row_of.get(path.parent / line.strip().replace("\\", "/"))
        if row is None:
            raise BadSourceError(
                f"{path} line {number}: {line.strip()[:200]!r} is not a training image; "
                f"allowed are paths such as {train[0].relative_to(path.parent)}"
            )
        flags[row] = True
    return {"is_poisoned": flags}


def _wrapper(images: list[PurePosixPath]) -> tuple[str, ...]:
    """The parts of the folder that wraps all images, as archives often have one."""
    depth = 0
    while True:
        tops = {path.parts[depth] for path in images}
        if len(tops) != 1 or min(len(path.parts) for path in images) < depth + 3:
            break
        if tops.pop().lower() in SPLITS:
            break
        depth += 1
    return images[0].parts[:depth]


def _below(wrapper: tuple[str, ...], paths: Iterable[PurePosixPath]) -> list[Named]:
    """The paths inside the wrapping folder, relative to it."""
    depth = len(wrapper)
    return [
        (PurePosixPath(*path.parts[depth:]), path)
        for path in paths
        if path.parts[:depth] == wrapper and len(path.parts) > depth
    ]


def _by_split(images: list[Named]) -> dict[str, list[Named]]:
    """The images of each part; without folders by part all are for training."""
    is_split = any(len(path.parts) > 2 and path.parts[0].lower() in SPLITS for path, _ in images)
    parts: dict[str, list[Named]] = {}
    for path, full in images:
        part = SPLITS.get(path.parts[0].lower()) if is_split else TRAIN
        if part is None or len(path.parts) != 2 + is_split:
            layout = "train/CLASS/FILE, and test/CLASS/FILE or val/CLASS/FILE" if is_split else "CLASS/FILE"
            raise BadSourceError(f"{full} is not in a class's folder; allowed is {layout}")
        parts.setdefault(part, []).append((path, full))
    return parts


def _reject_empty_classes(parts: dict[str, list[Named]], folders: list[Named]) -> None:
    """Raises BadSourceError for a class's folder without images, since the labels of the others would depend on it."""
    filled = {parent for files in parts.values() for path, _ in files for parent in path.parents}
    some_path, _ = next(iter(parts.values()))[0]
    depth = len(some_path.parts) - 1
    for path, full in folders:
        is_class = len(path.parts) == depth and (depth == 1 or path.parts[0].lower() in SPLITS)
        if is_class and path not in filled:
            raise BadSourceError(f"{full} has no images; every class needs one (or remove the folder)")


def _class_order(names: set[str]) -> tuple[str, ...]:
    """Class names in alphabetical order; by value if all are numbers."""
    return tuple(sorted(names, key=(lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else None))


def _stack(tree: Tree, files: list[Named], size: int | None, space: Space) -> ImageStack:
    stack = ImageStack(len(files), size, space)
    stack.extend((str(full), tree.read(full)) for _, full in files)
    return stack


def _labels(files: list[Named], names: tuple[str, ...]) -> Array:
    label = {name: i for i, name in enumerate(names)}
    return np.array([label[path.parent.name] for path, _ in files], np.int64)
