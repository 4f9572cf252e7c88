"""Base classes of defense specs."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from app.specs.base import PresetSpec, field
from app.specs.facts import DatasetFacts

Kind = Literal["training", "repair", "detection", "input_detection"]

DEFENSE_LABELS = frozenset({"arm", "preset"})
"""Fields of a defense that affect no number."""
VICTIM = "victim"
"""The stage that trains the undefended model. A training defense may name it: its arms then share the work with the
undefended arm, as long as that is trained from scratch."""
BENCHMARK = "BackdoorBench's published settings (Wu et al. 2022)"


class Defense(PresetSpec):
    """Base class of all defenses."""

    kind: ClassVar[Kind] = "training"
    """What the defense may use. training: the poisoned set. repair: the victim. detection: the poisoned set and the
    victim. input_detection: the victim, and the inputs that it scores, after everything else is fixed. Each also a
    clean set, for a `CleanSetDefense`."""

    needs_batch_norm: ClassVar[bool] = False
    """Whether the defense changes the victim's batch normalization; refused for an architecture without any."""
    needs_spatial_maps: ClassVar[bool] = False
    """Whether the defense uses the victim's feature maps of three resolutions; refused where there are fewer."""

    needs_poisoned_images: ClassVar[bool] = False
    """Whether a repair also uses the images of the poisoned set, of which it does not get the labels."""

    arm: str | None = field(
        None,
        "Name of the defense's arm. Null: the defense's name. Required if a defense appears twice.",
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$",
    )

    @property
    def searches_data(self) -> bool:
        """Whether the defense trains from the training set or looks for poison in it, which an attack on the training
        alone does not poison."""
        return self.kind in ("training", "detection") or self.needs_poisoned_images

    @classmethod
    def implementation(cls) -> Any:
        """The function that carries out the defense: from the spec and what its kind may use to the defended network.
        Of an input detection, the subclass of `worker.lab.defenses.input_detection.InputDetector`.

        For plug-ins, which must import torch and the worker inside this method. The code of a built-in defense is found
        by its name: `worker.lab.defenses.defend`.
        """
        raise NotImplementedError

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        """(field, value, what is allowed) of every field whose value does not fit a dataset with these ``facts``."""
        yield from ()

    @property
    def arm_name(self) -> str:
        """The arm's name."""
        name: str = self.arm or self.name  # type: ignore[attr-defined]  # every subclass has a literal name
        return name

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        """(kind, the fields that it depends on, expected epochs) of each stage. Each starts from the previous one."""
        raise NotImplementedError

    def fields(self, *omit: str) -> dict[str, Any]:
        """Every field that affects the numbers, as JSON, except those in ``omit``."""
        return self.model_dump(mode="json", exclude={"name", *DEFENSE_LABELS, *omit})


def check_window(ranking_window: int, isolation_epochs: int) -> None:
    """Raise ValueError if ranks would be averaged over more epochs than there are."""
    if ranking_window > isolation_epochs:
        raise ValueError(f"ranking_window {ranking_window} exceeds isolation_epochs {isolation_epochs}")


class CleanSetDefense(Defense):
    """Base class of defenses that need a clean set: a few unpoisoned images with true labels.

    They are originals of training images, drawn by the seed in proportion to the classes; never test images. As in the
    public benchmarks, the victim was trained on the same images, or on the poisoned copies of those that the attack
    selected, so its accuracy on them is training accuracy.
    """

    clean_ratio: float = field(
        0.05,
        "Size of the clean set, as a share of the training set.",
        unit="fraction",
        source=BENCHMARK,
        gt=0,
        le=0.5,
    )


class HeldOutDefense(CleanSetDefense):
    """Base class of defenses that withhold part of the clean set from training, to measure accuracy on."""

    held_out_ratio: float = field(
        0.2,
        "Share of the clean set that is held out from training, to measure accuracy on.",
        unit="fraction",
        source="chosen here",
        ge=0.05,
        le=0.8,
    )
