"""Base classes of attack specs."""

import base64
from collections.abc import Collection, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from app.specs.base import PresetSpec, field
from app.specs.facts import DatasetFacts
from app.specs.pictures import PngFacts, describe_png

RateOf = Literal["training_set", "target_class"]
RATE_OF = "The set that poisoning_rate is a share of: the whole training set or the target class."
ATTACK_LABELS = frozenset({"export", "preset"})
"""Fields of an attack that affect no number."""
LONGEST_PNG = 1_000_000
"""Largest number of characters of a picture in a spec, in base64."""
SURROGATE = "surrogate"
"""The kind of the stage that trains the attacker's surrogate."""
JOINT = "joint"
"""The kind of the stage that trains a backdoored model of the attacker's own."""
Position = Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"]


def check_base64(name: str, text: str | None) -> None:
    """Raise ValueError if the field ``name`` is given and is not base64."""
    try:
        base64.b64decode(text or "", validate=True)
    except ValueError as error:
        raise ValueError(f"{name} must be base64: {error}") from error


def find_unfit_png(name: str, text: str | None, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
    """Whether the picture in the field ``name`` differs from the dataset's images in size or color; for ``unfit``."""
    if text is None:
        return
    expected = PngFacts(facts.width, facts.height, gray=facts.channels == 1)
    if (actual := describe_png(base64.b64decode(text), allows_transparency=False)) != expected:
        yield name, str(actual), f"a PNG file of {expected}, 8 bits per channel, without transparency"


class PreparationStage(NamedTuple):
    """Something that an attack computes before it can poison images. Stages of equal kind and fields are shared."""

    kind: str
    fields: dict[str, Any]
    epochs: int
    """Expected work in training epochs, for progress."""


class PoisoningAttack(PresetSpec):
    """Base class of all attacks."""

    needs_gradients: ClassVar[bool] = False
    """Whether it differentiates gradients of a network of the victim's architecture."""
    cross_field: ClassVar[str] = "cover_rate"
    """The field that `cross_share` follows from, in attacks with cross samples."""
    target_class: int = field(
        0, "Class that triggered images are to be classified as.", ge=0, source="Gu et al. 2017"
    )
    poisoning_rate: float = field(
        0.1,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source="BackdoorBench's published settings (Wu et al. 2022)",
        gt=0,
        le=1,
    )
    export: bool = field(
        False,
        "Also store the poisoned training set, the clean test set and the triggered test images: as "
        "poisoned_train.npz for `bdlab data import`, in parquet if pyarrow is installed, and in the folders of "
        "backdoor-toolbox and BackdoorBench. About 500 MB for CIFAR-10; not for more than 4 GiB of images.",
    )

    @classmethod
    def implementation(cls) -> Any:
        """The subclass of `worker.lab.attacks.Attack` that carries out the attack.

        For plug-ins, which must import torch and the worker inside this method. The code of a built-in attack is found
        by its name, see `worker.lab.attacks.make_attack`.
        """
        raise NotImplementedError

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        """(field, value, what is allowed) of every field whose value does not fit a dataset with these ``facts``."""
        yield from ()

    @property
    def all_to_all(self) -> bool:
        """Whether triggered images of class c are driven to class c + 1, instead of all to target_class."""
        return False

    @property
    def poisons_data(self) -> bool:
        """Whether any training image is changed; false for an attack on the training alone."""
        return True

    @property
    def hands_over(self) -> bool:
        """Whether the undefended model is the attacker's own, which the stage of kind `JOINT` trains."""
        return False

    @property
    def clean_label_only(self) -> bool:
        """Whether only images of the target class are poisoned and no label changes."""
        return False

    @property
    def share_of_target_class(self) -> bool:
        """Whether poisoning_rate is a share of the target class."""
        return False

    def poisoned_classes(self, classes: int) -> Collection[int]:
        """The classes whose images are poisoned, in a dataset of so many classes.

        A dirty-label attack skips the target class, whose labels it would not change.
        """
        if self.clean_label_only:
            return (self.target_class,)
        return [c for c in range(classes) if self.all_to_all or c != self.target_class]

    def cross_classes(self, classes: int) -> Collection[int]:
        """The classes that cross samples are taken from."""
        return range(classes)

    @property
    def appends(self) -> bool:
        """Whether the poisoned images are added to the training set, beside those that they were made from."""
        return False

    @property
    def cross_share(self) -> float:
        """Share of cross samples in the training set. They keep their label and are not counted as poisoned."""
        return 0.0

    def stages(self) -> list[PreparationStage]:
        """What must be computed before the poisoned set. Each stage starts from the previous one."""
        return []


class SquarePatchAttack(PoisoningAttack):
    """Base class of attacks with a square patch, whose fields a subclass defines."""

    size: int | None
    position: str
    margin: int

    def patch_size(self, facts: DatasetFacts) -> int:
        """Side of the patch in pixels; by default 30 at an image width of 224, in proportion, and at least 3."""
        return max(3, round(30 / 224 * facts.width)) if self.size is None else self.size

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        size, side = self.patch_size(facts), min(facts.height, facts.width)
        margins = 2 if self.position == "random" else 1  # anywhere, or at one edge
        if size + margins * self.margin > side:
            kind = "2 * margin" if margins == 2 else "margin"
            yield "size", size, f"size + {kind} of at most {side}, the image's shorter side in pixels"


class DirtyLabelAttack(PoisoningAttack):
    """Base class of attacks that relabel the images that they poison."""

    label_mode: Literal["all_to_one", "all_to_all"] = field(
        "all_to_one",
        "all_to_one: every triggered image is driven to target_class. all_to_all: class c is driven to class c + 1, "
        "the last class to 0; target_class must then be 0.",
        source="Gu et al. 2017, section 4.2",
    )

    @property
    def all_to_all(self) -> bool:
        return self.label_mode == "all_to_all"


class TrainingAttack(DirtyLabelAttack):
    """Base class of attacks whose authors control the victim's training, and which can poison a set as well."""

    hand_over: bool = field(
        False,
        "true: the undefended model is the one that the attacker trained, as published. Repair and detection defenses "
        "start from it; training defenses train on the poisoned set. false: a new victim is trained on the poisoned "
        "set.",
        source="chosen here: an attacker who only poisons data trains no model",
        added_later=True,
    )

    @property
    def hands_over(self) -> bool:
        return self.hand_over


class PictureAttack(DirtyLabelAttack):
    """Base class of attacks whose trigger may be a picture of the user's own, and another one at test time.

    ``pattern`` says what the trigger is; with ``png`` it is ``pattern_png``.
    """

    requires: ClassVar[dict[str, str]] = {"png": "pattern_png"}
    """The field that each of these values of ``pattern`` requires, and that the others do not allow."""
    whole_image: ClassVar[bool] = True
    """Whether a picture must be as large as the images; else it is put at a place."""
    allows_transparency: ClassVar[bool] = True
    pattern: str
    pattern_png: str | None
    test_pattern_png: str | None = field(
        None,
        "Another picture at test time, of the same size; only if pattern is png. Null: the same as in training.",
        source="chosen here",
        added_later=True,
        max_length=LONGEST_PNG,
    )

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        for kind, name in self.requires.items():
            if (self.pattern == kind) != (getattr(self, name) is not None):
                raise ValueError(f"{name} is required if pattern is {kind!r}, and not allowed otherwise")
        if self.test_pattern_png is not None and self.pattern != "png":
            raise ValueError("test_pattern_png is only allowed if pattern is 'png'")
        for name in ("pattern_png", "test_pattern_png"):
            check_base64(name, getattr(self, name))
        return self

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if self.pattern != "png":
            yield from super().unfit(facts)  # of a patch that is drawn
            return
        first: str | None = None
        for name in ("pattern_png", "test_pattern_png"):
            text = getattr(self, name)
            if text is None:
                continue
            actual = describe_png(base64.b64decode(text), self.allows_transparency)
            if isinstance(actual, str):
                yield name, actual, self._allowed_png(facts)
                continue
            first = first or str(actual)
            if actual.gray != (facts.channels == 1) or not self._fits(actual, facts):
                yield name, str(actual), self._allowed_png(facts)
            elif str(actual) != first:
                yield name, str(actual), f"{first}, as pattern_png"

    def _fits(self, picture: PngFacts, facts: DatasetFacts) -> bool:
        return (picture.width, picture.height) == (facts.width, facts.height)

    def _allowed_png(self, facts: DatasetFacts) -> str:
        """The pictures that are allowed, in words."""
        image = PngFacts(facts.width, facts.height, gray=facts.channels == 1)
        most, margin = ("", "") if self.whole_image else ("at most ", ", with margin")
        transparency = "" if self.allows_transparency else ", without transparency"
        return f"a PNG file of {most}{image}{margin}, 8 bits per channel{transparency}"


class EitherLabelAttack(DirtyLabelAttack):
    """Base class of attacks that can also be clean-label."""

    clean_label: bool = field(
        False,
        "true: poison target-class images and keep their labels. false: poison other images and relabel them.",
        source="BackdoorBench's published settings (Wu et al. 2022)",
    )
    rate_of: RateOf = field(
        "training_set", RATE_OF, source="BackdoorBench's published settings (Wu et al. 2022)"
    )

    @property
    def clean_label_only(self) -> bool:
        return self.clean_label

    @property
    def share_of_target_class(self) -> bool:
        return self.rate_of == "target_class"


class CleanLabelAttack(PoisoningAttack):
    """Base class of attacks that poison only images of the target class and change no label."""

    rate_of: RateOf = field("target_class", RATE_OF, source="Turner et al. 2019")

    @property
    def clean_label_only(self) -> bool:
        return True

    @property
    def share_of_target_class(self) -> bool:
        return self.rate_of == "target_class"


class SurrogateAttack(PoisoningAttack):
    """Base class of attacks that use a surrogate: a model of the victim's architecture, trained on the clean set."""

    surrogate_epochs: int = field(
        30,
        "Training of the surrogate, with the experiment's recipe.",
        unit="epochs",
        source="chosen here",
        ge=1,
        le=1000,
    )
    surrogate_adversarial: bool = field(
        False,
        "Train the surrogate on adversarial examples, so that perturbations found with it transfer better to other "
        "models.",
        source="Turner et al. 2019; Madry et al. 2018",
    )
    surrogate_epsilon: float = field(
        8.0,
        "l_inf radius of the adversarial examples. Used only with surrogate_adversarial.",
        unit="gray levels (0-255)",
        source="Madry et al. 2018, section 5 (CIFAR-10)",
        gt=0,
        le=255,
    )
    surrogate_steps: int = field(
        7,
        "Gradient steps per adversarial example. Used only with surrogate_adversarial.",
        unit="steps",
        source="Madry et al. 2018, section 5 (CIFAR-10)",
        ge=1,
        le=100,
    )

    def surrogate_stage(self) -> PreparationStage:
        """The training of the surrogate. Equal for attacks with equal fields, so that they share the surrogate."""
        work = self.surrogate_epochs * (1 + self.surrogate_steps if self.surrogate_adversarial else 1)
        fields = self.fields_with("surrogate_")
        if not self.surrogate_adversarial:
            del fields["surrogate_epsilon"], fields["surrogate_steps"]
        return PreparationStage(SURROGATE, fields, work)
