"""Fields and base class of the repair defenses."""

from typing import Any, ClassVar

from app.specs.base import field
from app.specs.defenses.base import CleanSetDefense, Kind

CHOSEN = "chosen here"
MOST_EPOCHS = 20  # that a number of steps is divided into, each of which is measured


class Repair(CleanSetDefense):
    """Base class of repair defenses that need a clean set."""

    kind: ClassVar[Kind] = "repair"


def steps_field(default: int, description: str, source: str, least: int = 1) -> Any:
    """Length of a training on the clean set."""
    return field(
        default,
        f"{description}, rounded to whole passes over the clean set.",
        unit="batches",
        source=source,
        ge=least,
        le=100_000,
    )


def batch_size_field(default: int, source: str) -> Any:
    """Batch size of a training on the clean set."""
    return field(
        default,
        "Images in a batch; fewer if the clean set has fewer than four batches. Null: the experiment's.",
        unit="images",
        source=source,
        ge=2,
        le=4096,
    )


def weight_decay_field(default: float, source: str) -> Any:
    """Weight decay of a training on the clean set."""
    return field(default, "Weight decay. Null: the experiment's.", source=source, ge=0, le=0.1)


def learning_rate_field(default: float, description: str, source: str) -> Any:
    """Learning rate of a training on the clean set."""
    return field(default, description, source=source, gt=0, le=10)


def accuracy_drop_field(default: float, source: str) -> Any:
    """Bound on the accuracy that pruning may cost."""
    return field(
        default,
        "Largest drop of accuracy on the held-out part of the clean set, relative to the victim's; what is pruned "
        "stays within it.",
        unit="fraction",
        source=source,
        gt=0,
        le=1,
    )


def expected_epochs(steps: int) -> int:
    """The epochs that a training of ``steps`` is divided into, at most: a pass has four batches or more."""
    return min(MOST_EPOCHS, max(1, -(-steps // 4)))
