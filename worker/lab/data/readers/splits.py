"""Which files are for training and which for testing: by the names that datasets use."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from worker.lab.data.checking import BadSourceError

TRAIN, TEST, VALIDATION, TRIGGERED = "train", "test", "validation", "test_triggered"
SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "test": TEST,
    "testing": TEST,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test_triggered": TRIGGERED,
}
"""``test_triggered`` are test images with the trigger of a dataset that came poisoned, by their true classes."""
Files = TypeVar("Files", bound=Sequence[Any])


def choose_splits(
    parts: Mapping[str, Files], source: str, what: str
) -> tuple[Files, Files | None, list[str]]:
    """The training part, the test part if there is one, and a line about a part that is not used.

    The validation part serves as the test part where there is none; ``what`` the parts consist of is for messages.
    Raises BadSourceError without a training part.
    """
    if TRAIN not in parts:
        raise BadSourceError(f"{source} has {what} for {' and '.join(sorted(parts))}, but none for train")
    if TEST in parts and VALIDATION in parts:
        unused = f"{len(parts[VALIDATION])} {what} for validation are not used, because there is a test part"
        return parts[TRAIN], parts[TEST], [unused]
    return parts[TRAIN], parts.get(TEST, parts.get(VALIDATION)), []


def describe_skipped(paths: Sequence[PurePosixPath], what: str) -> list[str]:
    """A line about the files that are skipped, if there are any."""
    if not paths:
        return []
    return [f"skipped {len(paths)} files that are not {what}, such as {paths[0]}"]
