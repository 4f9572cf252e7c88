"""The layout of Tiny ImageNet: ``train/WNID/images/x.JPEG``, and ``val/images`` with the classes in a table."""

from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from worker.lab.data.checking import BadSourceError, Source
from worker.lab.data.readers.decoding import ImageStack, stack_parts
from worker.lab.data.readers.trees import Tree
from worker.lab.data.space import Space

ANNOTATIONS, WORDS = "val_annotations.txt", "words.txt"


def find_root(tree: Tree) -> PurePosixPath | None:
    """The folder of the dataset in ``tree``; None if the tree does not have this layout."""
    return next((path.parent.parent for path in tree.files if path.parts[-2:] == ("val", ANNOTATIONS)), None)


def read(tree: Tree, root: PurePosixPath, size: int | None, space: Space) -> Source:
    """The training images, and the validation images as test images: those named test have no labels.

    Raises BadSourceError.
    """
    files = set(tree.files)
    train = [
        path
        for path in tree.files
        if path.parent.parent.parent == root / "train" and path.parts[-2] == "images"
    ]
    if not train:
        raise BadSourceError(f"{tree.name} has {ANNOTATIONS}, but no images in train/CLASS/images")
    ids = sorted({path.parts[-3] for path in train})
    label = {id: i for i, id in enumerate(ids)}
    test = []
    for line in _read_text(tree, root / "val" / ANNOTATIONS).splitlines():
        name, _, rest = line.partition("\t")
        test.append((root / "val/images" / name, rest.partition("\t")[0]))
    for path, id in test:
        if id not in label or path not in files:
            raise BadSourceError(
                f"{ANNOTATIONS}: {path.name} {id}: there is no such image, or no such class in train"
            )
    stacks = []
    for paths in (train, [path for path, _ in test]):
        stack = ImageStack(len(paths), size, space)
        stack.extend((str(path), tree.read(path)) for path in paths)
        stacks.append(stack)
    x, x_test = stack_parts(*stacks)
    unlabeled = sum(path.parent == root / "test/images" for path in tree.files)
    return Source(
        x,
        np.array([label[path.parts[-3]] for path in train]),
        x_test,
        np.array([label[id] for _, id in test]),
        _class_names(tree, root, ids),
        notes=[f"{unlabeled} images in test are not used, because they have no labels"] if unlabeled else [],
    )


def _class_names(tree: Tree, root: PurePosixPath, ids: list[str]) -> tuple[str, ...]:
    """The first word for each class; with its id where two classes share it, or alone where there is none."""
    words: dict[str, str] = {}
    if root / WORDS in tree.files:
        for line in _read_text(tree, root / WORDS).splitlines():
            id, _, synonyms = line.partition("\t")
            words[id] = synonyms.partition(",")[0].strip()
    names = [words.get(id) or id for id in ids]
    uses = Counter(names)
    return tuple(name if uses[name] == 1 else f"{name} ({id})" for name, id in zip(names, ids, strict=True))


def _read_text(tree: Tree, path: PurePosixPath) -> str:
    try:
        return tree.read(path).decode()
    except UnicodeDecodeError as error:
        raise BadSourceError(f"{path} is not UTF-8") from error
