"""What a spec asks of its data set: found at submission, before any computing time is spent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.specs.attack import BadNets, NoAttack
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts


@dataclass(frozen=True)
class Problem:
    """One fault of a spec: the field's path, its value, and what is allowed."""

    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value!r} is not allowed; {self.allowed}"


def poison_count(spec: ExperimentSpec, facts: DatasetFacts) -> int:
    """How many training images ``spec.attack`` poisons, given the facts of the (sub)set it runs on.

    The rate times what it is a share of, rounded to the nearest whole image, and at least one.
    """
    attack = spec.attack
    if isinstance(attack, NoAttack):
        return 0
    whole = facts.train_counts[attack.target_class] if attack.share_of_target_class else facts.train_size
    return max(1, round(attack.poisoning_rate * whole))


def check(spec: ExperimentSpec, facts: DatasetFacts) -> list[Problem]:
    """Every way in which ``spec`` cannot run on its data set; ``facts`` are those of the whole set."""
    return list(_problems(spec, facts))


def _problems(spec: ExperimentSpec, whole: DatasetFacts) -> Iterator[Problem]:
    for part in ("train", "test"):
        asked, there = getattr(spec.dataset, f"{part}_size"), getattr(whole, f"{part}_size")
        if asked is not None and asked > there:
            yield Problem(f"dataset.{part}_size", asked, f"the data set has {there} images")
        if asked is not None and asked < whole.classes:
            yield Problem(
                f"dataset.{part}_size", asked, f"at least one image for each of {whole.classes} classes"
            )
    facts = whole.subset(spec.dataset)
    if spec.training.batch_size > facts.train_size:
        yield Problem(
            "training.batch_size", spec.training.batch_size, f"at most the {facts.train_size} training images"
        )
    attack = spec.attack
    if isinstance(attack, NoAttack):
        return
    if attack.target_class >= facts.classes:
        yield Problem(
            "attack.target_class",
            attack.target_class,
            f"0 to {facts.classes - 1}, one of {facts.classes} classes",
        )
        return
    count = poison_count(spec, facts)
    if attack.clean_label_only:
        there = facts.train_counts[attack.target_class]
        if count > there:
            yield Problem(
                "attack.poisoning_rate",
                attack.poisoning_rate,
                f"a clean-label attack poisons only the {there} images of class {attack.target_class}, not {count}",
            )
    elif count > (eligible := facts.train_size - facts.train_counts[attack.target_class]):
        yield Problem(
            "attack.poisoning_rate",
            attack.poisoning_rate,
            f"this asks for {count} images; only the {eligible} outside class {attack.target_class} can be poisoned",
        )
    if isinstance(attack, BadNets) and attack.size + attack.margin > min(facts.height, facts.width):
        yield Problem(
            "attack.size",
            attack.size,
            f"size + margin of at most {min(facts.height, facts.width)} pixels, the image's side",
        )
