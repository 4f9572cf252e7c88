"""One experiment: a data set, a victim, an attack, defenses, seeds."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.specs.attack import AttackSpec, BadNets
from app.specs.base import Spec, digest, field
from app.specs.dataset import UPLOAD_ID, DatasetSpec, Digits
from app.specs.defense import DefenseSpec
from app.specs.model import ModelSpec, SmallCnn
from app.specs.training import TrainingSpec

CLEAN, UNDEFENDED = "clean", "undefended"
LABELS = frozenset({"name", "tags", "priority"})
"""Fields that decide no number."""
ATTACK = "attack"
"""What an attack trains for itself is reported under this name; it is no arm of the results."""
TagKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
TagValue = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def arm_names(attack: str, reference: bool, defense_arms: Iterable[str]) -> tuple[str, ...]:
    """Arm names in the order in which results list them."""
    if attack == "none":
        return (CLEAN, *defense_arms)
    return (*([CLEAN] if reference else []), UNDEFENDED, *defense_arms)


class Victim(Spec):
    """A model of the user's own, sent to `POST /v1/models`, once its check has found it ready."""

    model_id: str = field(..., "The id that `POST /v1/models` gave.", pattern=UPLOAD_ID)


class ExperimentSpec(Spec):
    """What a client sends: everything that decides an experiment's numbers, and how to find it again."""

    name: str = field("", "A name for people; it does not change the results.", max_length=200)
    dataset: DatasetSpec = field(Digits(), "Data set.")
    model: ModelSpec = field(SmallCnn(), "Victim's architecture.")
    attack: AttackSpec = field(BadNets(), "How the training set is poisoned.")
    defenses: tuple[DefenseSpec, ...] = field((), "Defenses; each makes an arm of its own.", max_length=32)
    victim: Victim | None = field(
        None,
        "Take this model for the arm `undefended` (with no attack: `clean`) instead of training it, for every seed. "
        "Repair and detection start from it; defenses that train a model of their own do not use it. `model` and "
        "`dataset` must fit it. Null: train the victim.",
        exclude_if=lambda victim: victim is None,  # specs without one keep their canonical form and hash
    )
    training: TrainingSpec = field(TrainingSpec(), "How the clean and undefended arms are trained.")
    reference: bool = field(False, "Also train the clean arm: the same victim on the unpoisoned set.")
    seeds: tuple[Seed, ...] = field(
        (0,), "Each seed repeats every arm; results carry mean and interval.", min_length=1, max_length=50
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto",
        "Where to compute. auto: on a GPU, or on a CPU if it is small_cnn on digits; where no worker is of the one "
        "kind, on the other. cuda waits for a worker with a GPU.",
    )
    priority: int = field(
        0,
        "Of your queued experiments the one with the highest comes first. Owners take turns, so this takes nothing "
        "from others. It does not change the results.",
        ge=-9,
        le=9,
        exclude_if=lambda priority: priority == 0,  # specs without one keep their canonical form
    )
    tags: dict[TagKey, TagValue] = field(
        {}, "Labels to find the experiment by; they do not change the results.", max_length=32
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other: {list(self.seeds)}")
        names = [CLEAN, UNDEFENDED, ATTACK, *(d.arm_name for d in self.defenses)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"arm names must differ from each other; give `arm` to tell them apart: {twice}")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the order in which results list them."""
        return arm_names(self.attack.name, self.reference, [defense.arm_name for defense in self.defenses])

    @property
    def victim_arm(self) -> str:
        """The arm of the model that repair and detection start from: undefended, or clean if nothing is poisoned."""
        return CLEAN if self.attack.name == "none" else UNDEFENDED

    @property
    def spec_hash(self) -> str:
        """SHA-256 over everything that decides the numbers: all but `LABELS`."""
        return digest(self.model_dump(mode="json", exclude=set(LABELS)))
