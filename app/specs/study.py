"""A study: attacks x defenses on one data set and model, for a table."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.attack import AttackSpec
from app.specs.base import Spec, canonical_json, field
from app.specs.dataset import DatasetSpec, Digits
from app.specs.defense import DefenseSpec
from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec, Seed, TagKey, TagValue
from app.specs.model import ModelSpec, SmallCnn
from app.specs.training import TrainingSpec


class StudyAttack(Spec):
    """One row of the table."""

    attack: AttackSpec = field(..., "The attack, as in an experiment.")
    label: str | None = field(
        None,
        "Name of the row. Null: the attack's own name. Needed when one attack appears twice.",
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-\x1f]+$",
    )

    @property
    def row(self) -> str:
        """The row's name, resolved."""
        return self.label or self.attack.name


class StudyParts(Spec):
    """What a study is a product of, and what may be added to it later."""

    attacks: tuple[StudyAttack, ...] = field((), "Rows of the table.", max_length=64)
    defenses: tuple[DefenseSpec, ...] = field((), "Columns of the table.", max_length=32)
    seeds: tuple[Seed, ...] = field((), "Each seed repeats every cell.", max_length=50)


class StudySpec(StudyParts):
    """Every attack with every defense, on the same data and model, for every seed."""

    name: str = field("", "A name for people.", max_length=200)
    dataset: DatasetSpec = field(Digits(), "Data set.")
    model: ModelSpec = field(SmallCnn(), "Victim's architecture.")
    training: TrainingSpec = field(TrainingSpec(), "How the clean and undefended arms are trained.")
    reference: bool = field(True, "Also train the clean arm: the same victim on the unpoisoned set.")
    device: Literal["auto", "cpu", "cuda"] = field(
        "auto", "Where to compute. auto: a GPU if the worker has one."
    )
    tags: dict[TagKey, TagValue] = field({}, "Labels that its experiments carry.", max_length=32)
    attacks: tuple[StudyAttack, ...] = field(..., "Rows of the table.", min_length=1, max_length=64)
    seeds: tuple[Seed, ...] = field((0,), "Each seed repeats every cell.", min_length=1, max_length=50)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other: {list(self.seeds)}")
        rows = [attack.row for attack in self.attacks]
        if twice := sorted({row for row in rows if rows.count(row) > 1}):
            raise ValueError(
                f"attacks must have names of their own; give `label` to tell them apart: {twice}"
            )
        _refuse_equal("attacks", [(a.row, a.attack.model_dump(mode="json")) for a in self.attacks])
        _refuse_equal(
            "defenses", [(d.arm_name, d.model_dump(mode="json", exclude={"arm"})) for d in self.defenses]
        )
        return self

    @property
    def size(self) -> int:
        """How many cells there are: attacks x arms x seeds."""
        arms = [1 + (self.reference and a.attack.name != "none") + len(self.defenses) for a in self.attacks]
        return sum(arms) * len(self.seeds)

    @property
    def columns(self) -> list[str]:
        """The arms, in the order in which a table shows them."""
        names = {attack.attack.name for attack in self.attacks}
        clean = [CLEAN] if self.reference or "none" in names else []
        undefended = [UNDEFENDED] if names != {"none"} else []
        return [*clean, *undefended, *(defense.arm_name for defense in self.defenses)]

    def experiment(
        self, attack: StudyAttack, *, seeds: Sequence[int], defenses: Sequence[DefenseSpec], reference: bool
    ) -> ExperimentSpec:
        """The experiment that fills cells of one row."""
        return ExperimentSpec(
            name=f"{self.name or 'study'}: {attack.row}"[:200],
            dataset=self.dataset,
            model=self.model,
            attack=attack.attack,
            defenses=tuple(defenses),
            training=self.training,
            reference=reference,
            seeds=tuple(seeds),
            device=self.device,
            tags=self.tags,
        )

    def extended(self, more: StudyParts) -> "StudySpec":
        """The study with ``more``; what is already there is left as it is.

        Raises pydantic's ValidationError where a name is taken by something else.
        """
        document = self.model_dump(mode="json")
        for name in ("attacks", "defenses", "seeds"):
            known = document[name]
            known += [part for part in more.model_dump(mode="json")[name] if part not in known]
        return StudySpec.model_validate(document)


def _refuse_equal(field: str, named: Sequence[tuple[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for name, value in named:
        first = seen.setdefault(canonical_json(value), name)
        if first != name:
            raise ValueError(f"{field} must differ from each other: {first!r} and {name!r} are equal")
