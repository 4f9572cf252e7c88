"""Validation and conversion of imported data; every error is one clear line."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.specs.facts import GIVEN_TENSORS
from worker.lab.contracts import LabError
from worker.lab.data.space import Space

Array = NDArray[Any]
MAX_CLASSES, MAX_NAME_CHARACTERS = 10_000, 200
COPIED_ROWS = 1024
GIVEN_ARRAYS = (*GIVEN_TENSORS, "poison_indices")
"""Arrays of a source that came poisoned. ``poison_indices`` int ``[P]`` says the same as ``is_poisoned`` ``[N]``."""


class BadSourceError(LabError):
    """A source that cannot be imported; the message names the part, its value, and what is allowed.

    ``parameter`` is the parameter of `read_source` that the message is about, if any. The message begins with it: as an
    option of `bdlab data import` in ``str(error)``, as a field of the API in ``api_message``.
    """

    def __init__(self, message: str, parameter: str = "") -> None:
        option = f"--{parameter.replace('_', '-')}: " if parameter else ""
        super().__init__(option + message)
        self.api_message = f"{parameter}: {message}" if parameter else message


@dataclass
class Source:
    """The contents of a source. Test arrays and class names are None where the source has none; ``notes`` say, one line
    each, what of the source is not used.

    Images are ``[N, H, W, C]``, ``[N, C, H, W]`` or ``[N, H, W]``; labels ``[N]`` or ``[N, 1]``.
    """

    x_train: Array
    y_train: Array
    x_test: Array | None = None
    y_test: Array | None = None
    class_names: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)
    given: dict[str, Array] = field(default_factory=dict)
    """Those of `GIVEN_ARRAYS` that the source has, if it came poisoned."""


@dataclass(frozen=True)
class CheckedDataset:
    """Images uint8 ``[N, C, H, W]``, labels int64 ``[N]``, a name for every class, and the source's notes.

    ``given`` are some of `app.specs.facts.GIVEN_TENSORS`.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    given: dict[str, Array] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The arguments of `worker.lab.data.files.write`."""
        arrays = {name: value for name, value in vars(self).items() if name not in ("notes", "given")}
        return arrays | self.given


def check_source(
    source: Source, *, test_fraction: float | None, split_seed: int, space: Space | None = None
) -> CheckedDataset:
    """Convert ``source``, splitting off ``test_fraction`` of every class if it has no test images.

    The arrays of ``source`` are released as soon as they are converted. Raises BadSourceError.
    """
    space = space or Space()
    x, y = to_image_array("x_train", source.x_train, space), to_label_array("y_train", source.y_train)
    del source.x_train
    _same_length("train", x, y)
    flags = _to_flags(source.given, len(y))
    if source.x_test is None or source.y_test is None:
        if test_fraction is None:
            raise BadSourceError(
                "required, because the source has no test images; for example 0.2", "test_fraction"
            )
        names = _class_names(source.class_names, y)
        train, test = split_by_class(y, test_fraction, split_seed, names, flags.get("is_poisoned"))
        x_test = space.new_array((len(test), *x.shape[1:]))
        for start in range(0, len(test), COPIED_ROWS):
            x_test[start : start + COPIED_ROWS] = x[test[start : start + COPIED_ROWS]]
        # In place, so that no second copy of the dataset is in memory: row i comes from a row that is not before it.
        for start in range(0, len(train), COPIED_ROWS):
            rows = train[start : start + COPIED_ROWS]
            x[start : start + len(rows)] = x[rows]
        flags = {name: array[train] for name, array in flags.items()}
        parts = CheckedDataset(x[: len(train)], y[train], x_test, y[test], names, tuple(source.notes), flags)
    else:
        if test_fraction is not None:
            raise BadSourceError(
                f"{test_fraction} is not allowed; the source has test images", "test_fraction"
            )
        x_test, y_test = (
            to_image_array("x_test", source.x_test, space),
            to_label_array("y_test", source.y_test),
        )
        source.x_test = None
        _same_length("test", x_test, y_test)
        if x.shape[1:] != x_test.shape[1:]:
            raise BadSourceError(
                f"x_test: images of {_shape(x_test)}, but those of x_train are {_shape(x)}; they must agree"
            )
        names = _class_names(source.class_names, np.concatenate([y, y_test]))
        parts = CheckedDataset(x, y, x_test, y_test, names, tuple(source.notes), flags)
    _reject_labels("clean_labels", flags.get("clean_labels"), names)
    parts.given.update(_check_triggered(source.given, parts))
    for part, y_part in (("train", parts.y_train), ("test", parts.y_test)):
        counts = np.bincount(y_part, minlength=len(parts.class_names))
        if not counts.all():
            empty = int(np.argmin(counts))
            raise BadSourceError(
                f"y_{part}: class {empty} ({parts.class_names[empty]}) has no images; every class needs one"
            )
    return parts


def to_image_array(name: str, array: Array, space: Space) -> Array:
    """``array`` as uint8 ``[N, C, H, W]``. Floats must be in [0, 1] and are scaled to 0-255."""
    if array.ndim not in (3, 4) or array.size == 0:
        raise BadSourceError(
            f"{name}: shape {list(array.shape)}; allowed are [N, H, W, C], [N, C, H, W] and [N, H, W], N > 0"
        )
    if array.ndim == 3:
        array = array[:, None]
    else:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if first == last:
            problem = "is ambiguous" if first else "has neither 1 nor 3 channels"
            raise BadSourceError(
                f"{name}: shape {list(array.shape)} {problem}; "
                "allowed are [N, H, W, C] and [N, C, H, W], C being 1 or 3"
            )
        array = array.transpose(0, 3, 1, 2) if last else array
    if np.issubdtype(array.dtype, np.floating):
        return _from_floats(name, array, space)
    if array.dtype != np.uint8:
        raise BadSourceError(f"{name}: type {array.dtype}; allowed are uint8, and floats in [0, 1]")
    if array.flags.c_contiguous:
        return array
    result = space.new_array(array.shape)
    for start in range(0, len(array), COPIED_ROWS):
        result[start : start + COPIED_ROWS] = array[start : start + COPIED_ROWS]
    return result


def _from_floats(name: str, array: Array, space: Space) -> Array:
    result = space.new_array(array.shape)
    for start in range(0, len(array), COPIED_ROWS):  # in chunks, which bounds the float copies
        piece = array[start : start + COPIED_ROWS]
        if not np.isfinite(piece).all():
            where = start + int(np.argmin(np.isfinite(piece).all(axis=(1, 2, 3))))
            raise BadSourceError(f"{name}: image {where} contains NaN or infinity; floats must be in [0, 1]")
        low, high = float(piece.min()), float(piece.max())
        if low < 0 or high > 1:
            raise BadSourceError(
                f"{name}: values from {low:g} to {high:g}; floats must be in [0, 1] (or use uint8)"
            )
        result[start : start + COPIED_ROWS] = np.rint(piece * 255)
    return result


def to_label_array(name: str, array: Array) -> Array:
    """``array`` as int64 ``[N]``; negative labels are an error."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise BadSourceError(f"{name}: shape {list(array.shape)}; allowed are [N] and [N, 1]")
    if not np.issubdtype(array.dtype, np.integer):
        raise BadSourceError(f"{name}: type {array.dtype}; labels must be integers, 0 to classes - 1")
    if array.size:
        for label in (int(array.min()), int(array.max())):  # a uint64 may exceed int64
            if not 0 <= label <= np.iinfo(np.int64).max:
                raise BadSourceError(f"{name}: label {label}; labels must be 0 to classes - 1")
    return np.ascontiguousarray(array, np.int64)


def _to_flags(given: Mapping[str, Array], length: int) -> dict[str, Array]:
    """What is known about the ``length`` training images: ``is_poisoned``, ``is_cross`` and ``clean_labels``."""
    flags: dict[str, Array] = {}
    if "poison_indices" in given:
        if "is_poisoned" in given:
            raise BadSourceError("poison_indices and is_poisoned say the same; give one of them")
        flags["is_poisoned"] = _from_indices("poison_indices", given["poison_indices"], length)
    for name in ("is_poisoned", "is_cross"):
        if name in given:
            flags[name] = _to_flag_array(name, given[name])
    if "clean_labels" in given:
        flags["clean_labels"] = to_label_array("clean_labels", given["clean_labels"])
    for name, array in flags.items():
        if len(array) != length:
            raise BadSourceError(
                f"{name}: {len(array)} values for the {length} training images; they must agree"
            )
    return flags


def _from_indices(name: str, array: Array, length: int) -> Array:
    """bool ``[length]``: which rows ``array`` lists."""
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise BadSourceError(
            f"{name}: {array.dtype} of shape {list(array.shape)}; allowed are integers [P], the rows of x_train"
        )
    if array.size:
        for row in (int(array.min()), int(array.max())):
            if not 0 <= row < length:
                raise BadSourceError(f"{name}: row {row}; allowed are 0 to {length - 1}, the rows of x_train")
    if len(np.unique(array)) != len(array):
        raise BadSourceError(f"{name}: some rows are listed twice")
    flags = np.zeros(length, bool)
    flags[array.astype(np.int64)] = True
    return flags


def _to_flag_array(name: str, array: Array) -> Array:
    is_flags = array.dtype == bool or (
        np.issubdtype(array.dtype, np.integer) and np.isin(array, (0, 1)).all()
    )
    if array.ndim != 1 or not is_flags:
        raise BadSourceError(
            f"{name}: {array.dtype} of shape {list(array.shape)}; allowed are [N] of true and false, or 1 and 0"
        )
    return array.astype(bool)


def _check_triggered(given: Mapping[str, Array], parts: CheckedDataset) -> dict[str, Array]:
    """The test images with the trigger, if ``given`` has them, their true labels, and their targets if it has them."""
    present = [name for name in ("x_test_triggered", "y_test_triggered", "y_test_target") if name in given]
    if not present:
        return {}
    for name in ("x_test_triggered", "y_test_triggered"):
        if name not in given:
            raise BadSourceError(
                f"{name} is missing; triggered test images need both x_test_triggered and y_test_triggered"
            )
    x = to_image_array("x_test_triggered", given["x_test_triggered"], Space())
    if x.shape[1:] != parts.x_train.shape[1:]:
        raise BadSourceError(
            f"x_test_triggered: images of {_shape(x)}, but those of x_train are {_shape(parts.x_train)}; "
            "they must agree"
        )
    triggered = {"x_test_triggered": x}
    for name in present[1:]:
        y = to_label_array(name, given[name])
        if len(y) != len(x):
            raise BadSourceError(
                f"{name}: {len(y)} labels for the {len(x)} images of x_test_triggered; they must agree"
            )
        _reject_labels(name, y, parts.class_names)
        triggered[name] = y
    return triggered


def _reject_labels(name: str, y: Array | None, names: tuple[str, ...]) -> None:
    """Raises BadSourceError if a label is not one of the classes."""
    if y is not None and y.max() >= len(names):
        raise BadSourceError(
            f"{name}: label {y.max()} is out of range; 0 to {len(names) - 1}, one of the classes"
        )


def split_by_class(
    y: Array, fraction: float, seed: int, names: tuple[str, ...], excluded: Array | None = None
) -> tuple[Array, Array]:
    """Sorted indices of a training and a test part; ``fraction`` of each class, at least one, is for testing.

    Images that are ``excluded`` (bool ``[N]``), since they are known to be poisoned, are all for training.
    """
    random = np.random.default_rng(seed)
    test: list[Array] = []
    for label, name in enumerate(names):
        members = np.flatnonzero(y == label if excluded is None else (y == label) & ~excluded)
        if len(members) < 2:
            kind = "images" if excluded is None else "images that are not poisoned"
            raise BadSourceError(
                f"class {label} ({name}) has {len(members)} {kind}; a split needs at least 2"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        test.append(random.choice(members, count, replace=False))
    chosen = np.zeros(len(y), bool)
    chosen[np.concatenate(test)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _class_names(names: tuple[str, ...] | None, y: Array) -> tuple[str, ...]:
    """The given names, or the labels as names. Raises BadSourceError for labels without a name, or implausible ones."""
    highest = int(y.max())
    if names is None:
        if highest >= len(y):
            raise BadSourceError(f"label {highest} is out of range; there are only {len(y)} images")
        if highest == 0:
            raise BadSourceError("all labels are 0; at least two classes are needed")
        names = tuple(str(label) for label in range(highest + 1))
    if highest >= len(names):
        raise BadSourceError(f"label {highest} is out of range; {len(names)} classes are named")
    if len(names) == 1:
        raise BadSourceError(f"{names[0]} is the only class; at least two classes are needed")
    if len(names) > MAX_CLASSES:
        raise BadSourceError(f"there are {len(names)} classes; at most {MAX_CLASSES} are accepted")
    for name in names:
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise BadSourceError(
                f"the class name {name[:50]!r} is not accepted; at most {MAX_NAME_CHARACTERS} printable characters are"
            )
    repeated, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise BadSourceError(f"{count} classes are named {repeated!r}; names must differ")
    return names


def _same_length(part: str, x: Array, y: Array) -> None:
    if len(x) != len(y):
        raise BadSourceError(
            f"y_{part}: {len(y)} labels for the {len(x)} images of x_{part}; they must agree"
        )


def _shape(x: Array) -> str:
    return "x".join(map(str, x.shape[1:]))
