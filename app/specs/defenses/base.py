"""What the specs of all defenses share."""

from typing import Any, ClassVar, Literal

from app.specs.base import Spec, field

Kind = Literal["training", "repair", "detection"]

BENCHMARK = "BackdoorBench's published settings (Wu et al. 2022)"


class Defense(Spec):
    """Fields that every defense shares."""

    kind: ClassVar[Kind] = "training"
    """What it works on. training: the poisoned set alone. repair: the undefended victim and a small clean set.
    detection: the poisoned set, the undefended victim and, where it asks for one, a small clean set."""

    arm: str | None = field(
        None,
        "Name of this defense's arm in results. Null: the defense's own name. Needed when one defense appears twice.",
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$",
    )

    @classmethod
    def implementation(cls) -> Any:
        """The function (spec, what its kind may see) to the defended network. Plug-ins have it here, and import torch
        and the worker within; the repository's own defenses are in `worker.lab.defenses`."""
        raise NotImplementedError

    @property
    def arm_name(self) -> str:
        """The arm's name, resolved."""
        name: str = self.arm or self.name  # type: ignore[attr-defined]  # every subclass has a literal name
        return name

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        """(kind, the fields it depends on, expected epochs) of each stage, every one built on the one before."""
        raise NotImplementedError

    def fields(self, *omit: str) -> dict[str, Any]:
        """Every field that decides numbers, as JSON, less those in ``omit``."""
        return self.model_dump(mode="json", exclude={"arm", "name", *omit})


def check_window(ranking_window: int, isolation_epochs: int) -> None:
    """Raise ValueError if ranks would be averaged over more epochs than there are."""
    if ranking_window > isolation_epochs:
        raise ValueError(f"ranking_window {ranking_window} exceeds isolation_epochs {isolation_epochs}")


class CleanSetDefense(Defense):
    """A defense whose user holds a small set of clean images with true labels.

    They are unpoisoned originals of training images, drawn from the seed with class proportions kept; test images
    are never among them. The victim was trained on the same images (or, where the attack chose one of them, on its
    poisoned copy), as in the public benchmarks, so the victim's own accuracy on them is its accuracy in training.
    """

    clean_ratio: float = field(
        0.05,
        "Size of the clean set as a share of the training set.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        le=0.5,
    )
    held_out_ratio: float = field(
        0.2,
        "Share of the clean set that nothing is trained on: bounds are kept on it, and losses of accuracy seen.",
        unit="fraction",
        ge=0.05,
        le=0.8,
    )
