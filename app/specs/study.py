"""A study: attacks x defenses on one dataset and model, shown as a table."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.attack import AttackSpec
from app.specs.base import Preset, PresetSpec, Spec, canonical_json, field
from app.specs.bench import bench_study
from app.specs.dataset import DatasetSpec, Digits
from app.specs.defense import DefenseSpec
from app.specs.defenses.base import BENCHMARK
from app.specs.experiment import ExperimentSpec, Seed, TagKey, TagValue
from app.specs.model import ModelSpec, SmallCnn
from app.specs.training import TrainingSpec


class StudyAttack(Spec):
    """One row of the table."""

    attack: AttackSpec = field(..., "Attack, as in an experiment.")
    label: str | None = field(
        None,
        "Name of the row. Null: the attack's name. Required if an attack appears twice.",
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-\x1f]+$",
    )

    @property
    def row(self) -> str:
        """The row's name."""
        return self.label or self.attack.name


class StudyParts(Spec):
    """The axes of a study, which can be extended later."""

    attacks: tuple[StudyAttack, ...] = field((), "Rows of the table.", max_length=64)
    defenses: tuple[DefenseSpec, ...] = field((), "Columns of the table.", max_length=64)
    seeds: tuple[Seed, ...] = field((), "Every cell is run once for each seed.", max_length=50)


_PRESETS = {
    "bench": Preset(
        "the attacks and defenses of BackdoorBench's leaderboard that this project has, at its settings, with its "
        "training recipe: CIFAR-10, preact_resnet18, 100 epochs.",
        BENCHMARK,
        bench_study(),
    )
}


class StudySpec(PresetSpec, StudyParts):
    """Every attack against every defense, on one dataset and model, for every seed."""

    presets = _PRESETS

    preset: Literal["bench"] | None = field(
        None,
        f"Settings that fill the fields that are omitted. bench: {_PRESETS['bench'].summary}",
        source=BENCHMARK,
        added_later=True,
    )
    name: str = field("", "A name for people.", max_length=200)
    dataset: DatasetSpec = field(Digits(), "Dataset.")
    model: ModelSpec = field(SmallCnn(), "Architecture of the victim.")
    training: TrainingSpec = field(TrainingSpec(), "Training of the clean and undefended arms.")
    reference: bool = field(
        True, "Also train the arm `clean`: the same victim on the unpoisoned training set."
    )
    device: Literal["auto", "cpu", "cuda"] = field("auto", "Device to compute on, as in an experiment.")
    tags: dict[TagKey, TagValue] = field({}, "Labels of the study's experiments.", max_length=32)
    attacks: tuple[StudyAttack, ...] = field(
        (),
        "Rows of the table, at least one; required unless a preset fills them.",
        min_length=1,
        max_length=64,
    )
    seeds: tuple[Seed, ...] = field(
        (0,), "Every cell is run once for each seed.", min_length=1, max_length=50
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct: {list(self.seeds)}")
        rows = [attack.row for attack in self.attacks]
        if duplicates := sorted({row for row in rows if rows.count(row) > 1}):
            raise ValueError(f"row names must be distinct: {duplicates}; set `label` to rename a row")
        _reject_equal("attacks", [(a.row, a.attack.model_dump(mode="json")) for a in self.attacks])
        _reject_equal(
            "defenses", [(d.arm_name, d.model_dump(mode="json", exclude={"arm"})) for d in self.defenses]
        )
        return self

    @property
    def size(self) -> int:
        """The number of cells: attacks x arms x seeds."""
        arms = [1 + (self.reference and a.attack.name != "none") + len(self.defenses) for a in self.attacks]
        return sum(arms) * len(self.seeds)

    def experiment(
        self, attack: StudyAttack, *, seeds: Sequence[int], defenses: Sequence[DefenseSpec], reference: bool
    ) -> ExperimentSpec:
        """The experiment that computes cells of one row."""
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

    def extended_with(self, more: StudyParts) -> "StudySpec":
        """The study with the attacks, defenses and seeds of ``more`` that it does not have yet.

        Raises pydantic's ValidationError if a name is already used for something else.
        """
        document, added = self.model_dump(mode="json"), more.model_dump(mode="json")
        for name in ("attacks", "defenses", "seeds"):
            document[name] += [part for part in added[name] if part not in document[name]]
        return StudySpec.model_validate(document)


def _reject_equal(field: str, values: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if two of the named ``values`` are equal but for their names."""
    names: dict[str, str] = {}
    for name, value in values:
        first = names.setdefault(canonical_json(value), name)
        if first != name:
            raise ValueError(f"{field} must be distinct: {first!r} and {name!r} are equal")
