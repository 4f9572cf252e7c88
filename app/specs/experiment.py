"""The spec of an experiment: dataset, victim, attack, defenses and seeds."""

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
UNHASHED_FIELDS = frozenset({"name", "tags", "priority"})
"""Fields that affect no number and are not part of the spec's hash."""
ATTACK = "attack"
"""The name under which progress and curves of the attack's own models are reported. It is not an arm of the results."""
TagKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
TagValue = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def arm_names(attack: str, reference: bool, defense_arms: Iterable[str]) -> tuple[str, ...]:
    """Arm names in the order in which results list them."""
    if attack == "none":
        return (CLEAN, *defense_arms)
    return (*([CLEAN] if reference else []), UNDEFENDED, *defense_arms)


class Victim(Spec):
    """A model uploaded with `POST /v1/models`. Its status must be `ready`."""

    model_id: str = field(..., "The id returned by `POST /v1/models`.", pattern=UPLOAD_ID)


class ExperimentSpec(Spec):
    """An experiment as a client sends it: everything that determines its numbers, and names to find it by."""

    name: str = field("", "A name for people. It does not affect the results.", max_length=200)
    dataset: DatasetSpec = field(Digits(), "Dataset.")
    model: ModelSpec = field(SmallCnn(), "Architecture of the victim.")
    attack: AttackSpec = field(BadNets(), "How the training set is poisoned.")
    defenses: tuple[DefenseSpec, ...] = field((), "Defenses. Each one adds an arm.", max_length=64)
    victim: Victim | None = field(
        None,
        "A model to use as the arm `undefended` (without an attack: `clean`) for every seed, instead of training "
        "one. Repair, detection and input detection start from it; training defenses do not use it. `model` and "
        "`dataset` must match it. Null: train the victim.",
        added_later=True,
    )
    training: TrainingSpec = field(TrainingSpec(), "Training of the clean and undefended arms.")
    reference: bool = field(
        False, "Also train the arm `clean`: the same victim on the unpoisoned training set."
    )
    seeds: tuple[Seed, ...] = field(
        (0,),
        "Every arm is run once for each seed; results give the mean and its interval.",
        min_length=1,
        max_length=50,
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto",
        "Device to compute on. auto: a CPU for small_cnn on digits, a GPU for everything else; the other kind if "
        "only such workers are running. cuda: a GPU only; the experiment waits for a worker that has one.",
    )
    priority: int = field(
        0,
        "Your queued experiments are started in order of priority, highest first. Owners take turns, so other "
        "owners are not affected. It does not affect the results.",
        ge=-9,
        le=9,
        added_later=True,
    )
    tags: dict[TagKey, TagValue] = field(
        {}, "Labels to find the experiment by. They do not affect the results.", max_length=32
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct: {list(self.seeds)}")
        names = [CLEAN, UNDEFENDED, ATTACK, *(d.arm_name for d in self.defenses)]
        if duplicates := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"arm names must be distinct: {duplicates}; set `arm` to rename an arm")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the order in which results list them."""
        return arm_names(self.attack.name, self.reference, [defense.arm_name for defense in self.defenses])

    @property
    def victim_arm(self) -> str:
        """The arm that all defenses but training defenses start from: undefended, or clean without an attack."""
        return CLEAN if self.attack.name == "none" else UNDEFENDED

    @property
    def spec_hash(self) -> str:
        """SHA-256 over everything that determines the numbers: all fields except `UNHASHED_FIELDS`."""
        return digest(self.model_dump(mode="json", exclude=set(UNHASHED_FIELDS)))
