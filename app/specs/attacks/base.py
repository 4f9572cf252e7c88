"""What attacks' specs share."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from app.specs.base import Spec, field
from app.specs.facts import DatasetFacts

RateOf = Literal["training_set", "target_class"]
RATE_OF = "What poisoning_rate is a share of: the whole training set, or the target class alone."
Position = Literal["bottom_right", "bottom_left", "top_right", "top_left", "center"]


class PreparationStage(NamedTuple):
    """Something an attack computes before anything can be poisoned. Equal kind and fields are shared."""

    kind: str
    fields: dict[str, Any]
    epochs: int
    """Expected work in training epochs, for progress."""


class PoisoningAttack(Spec):
    """Fields and properties of every attack that poisons."""

    target_class: int = field(
        0, "The class that a triggered image shall be given.", ge=0, source="Gu et al. 2017"
    )
    poisoning_rate: float = field(
        0.1, "Share of the training set that is poisoned.", unit="fraction", gt=0, le=1
    )
    export: bool = field(
        False,
        "Also store the poisoned training set with the clean test set as poisoned_train.npz (and as parquet, "
        "where pyarrow is installed), which `bdlab data import` takes. About 180 MB for CIFAR-10.",
    )

    @classmethod
    def implementation(cls) -> Any:
        """The subclass of `worker.lab.attacks.Attack` that carries the attack out. Plug-ins have it here, and import
        torch and the worker within; the repository's own attacks are in `worker.lab.attacks.ATTACKS`."""
        raise NotImplementedError

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        """(field, value, what is allowed) of every field that cannot be as it is on such a data set."""
        yield from ()

    @property
    def all_to_all(self) -> bool:
        """True if an image of class c is driven to class c + 1, rather than all to target_class."""
        return False

    @property
    def clean_label_only(self) -> bool:
        """True if only images of the target class are poisoned and no label changes."""
        return False

    @property
    def share_of_target_class(self) -> bool:
        """True if poisoning_rate is a share of the target class."""
        return False

    @property
    def cross_share(self) -> float:
        """Share of the training set that carries a foreign trigger and keeps its true label: no poison."""
        return 0.0

    def stages(self) -> list[PreparationStage]:
        """What must be computed before the poisoned set, every stage built on the one before."""
        return []

    def part(self, *prefixes: str) -> dict[str, Any]:
        """The fields whose names start with one of ``prefixes``."""
        return {n: v for n, v in self.model_dump(mode="json").items() if n.startswith(prefixes)}


class DirtyLabelAttack(PoisoningAttack):
    """An attack that relabels what it poisons."""

    label_mode: Literal["all_to_one", "all_to_all"] = field(
        "all_to_one",
        "all_to_one drives every triggered image to target_class; all_to_all drives class c to c + 1 "
        "(the last to 0), and target_class must then stay 0.",
        source="Gu et al. 2017, section 4.2",
    )

    @property
    def all_to_all(self) -> bool:
        return self.label_mode == "all_to_all"


class CleanLabelAttack(PoisoningAttack):
    """An attack that poisons images of the target class alone and changes no label."""

    rate_of: RateOf = field("target_class", RATE_OF)

    @property
    def clean_label_only(self) -> bool:
        return True

    @property
    def share_of_target_class(self) -> bool:
        return self.rate_of == "target_class"


class SurrogateAttack(PoisoningAttack):
    """An attack that needs a model of its own, of the victim's architecture, trained on the clean set."""

    surrogate_epochs: int = field(
        30, "Training of the attacker's own model, by the experiment's recipe.", unit="epochs", ge=1, le=1000
    )
    surrogate_adversarial: bool = field(
        False,
        "Train the attacker's model on adversarial examples, which makes the perturbations found with it "
        "carry over to other models.",
        source="Turner et al. 2019; Madry et al. 2018",
    )
    surrogate_epsilon: float = field(
        8.0,
        "l_inf radius of those adversarial examples; read only if surrogate_adversarial.",
        unit="gray levels (0-255)",
        source="Madry et al. 2018, section 5 (CIFAR-10)",
        gt=0,
        le=255,
    )
    surrogate_steps: int = field(
        7,
        "Gradient steps to each of those adversarial examples; read only if surrogate_adversarial.",
        unit="steps",
        source="Madry et al. 2018, section 5 (CIFAR-10)",
        ge=1,
        le=100,
    )

    def surrogate_stage(self) -> PreparationStage:
        """The same for every attack whose fields agree, so that they share the model."""
        work = self.surrogate_epochs * (1 + self.surrogate_steps if self.surrogate_adversarial else 1)
        fields = self.part("surrogate_")
        if not self.surrogate_adversarial:
            del fields["surrogate_epsilon"], fields["surrogate_steps"]
        return PreparationStage("surrogate", fields, work)
