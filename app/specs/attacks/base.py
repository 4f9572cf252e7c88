"""Base classes of attack specs."""

from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple

from app.specs.base import PresetSpec, field
from app.specs.facts import DatasetFacts

RateOf = Literal["training_set", "target_class"]
RATE_OF = "The set that poisoning_rate is a share of: the whole training set or the target class."
ATTACK_LABELS = frozenset({"export", "preset"})
"""Fields of an attack that affect no number."""
SURROGATE = "surrogate"
"""The kind of the stage that trains the attacker's surrogate."""
Position = Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"]


class PreparationStage(NamedTuple):
    """Something that an attack computes before it can poison images. Stages of equal kind and fields are shared."""

    kind: str
    fields: dict[str, Any]
    epochs: int
    """Expected work in training epochs, for progress."""


class PoisoningAttack(PresetSpec):
    """Base class of all attacks."""

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
        "Also store the poisoned training set and the clean test set as poisoned_train.npz (and in parquet, if "
        "pyarrow is installed) for `bdlab data import`. About 180 MB for CIFAR-10; not for more than 4 GiB of images.",
    )

    @classmethod
    def implementation(cls) -> Any:
        """The subclass of `worker.lab.attacks.Attack` that carries out the attack.

        For plug-ins, which must import torch and the worker inside this method. The built-in attacks are listed in
        `worker.lab.attacks.ATTACKS`.
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
