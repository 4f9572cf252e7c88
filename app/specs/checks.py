"""What a spec asks of its data set: found at submission, before any computing time is spent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.specs.attack import (
    BadNets,
    Blend,
    CleanLabel,
    HiddenTrigger,
    LowFrequency,
    NoAttack,
    PoisonFrogs,
    PoisoningAttack,
    Refool,
    SinglePixel,
    Trojan,
    WaNet,
)
from app.specs.defenses.base import CleanSetDefense
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.png import png_shape


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


def cross_count(spec: ExperimentSpec, facts: DatasetFacts) -> int:
    """How many training images carry a foreign trigger and keep their label."""
    share = 0.0 if isinstance(spec.attack, NoAttack) else spec.attack.cross_share
    return max(1, round(share * facts.train_size)) if share else 0


def patch_size(attack: BadNets | Trojan | HiddenTrigger, facts: DatasetFacts) -> int:
    """Side of the patch in pixels; where the spec leaves it open, 30 at a width of 224, and at least 3."""
    return max(3, round(30 / 224 * facts.width)) if attack.size is None else attack.size


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
    for i, defense in enumerate(spec.defenses):
        if (
            isinstance(defense, CleanSetDefense)
            and round(defense.clean_ratio * facts.train_size) < facts.classes
        ):
            yield Problem(
                f"defenses.{i}.clean_ratio",
                defense.clean_ratio,
                f"at least {facts.classes / facts.train_size:.3g}, one clean image for each of {facts.classes} classes",
            )
    if not isinstance(spec.attack, NoAttack):
        yield from _attack_problems(spec, spec.attack, facts)


def _attack_problems(spec: ExperimentSpec, attack: PoisoningAttack, facts: DatasetFacts) -> Iterator[Problem]:
    if attack.target_class >= facts.classes:
        yield Problem(
            "attack.target_class",
            attack.target_class,
            f"0 to {facts.classes - 1}, one of {facts.classes} classes",
        )
        return
    if attack.all_to_all:
        if attack.clean_label_only:
            yield Problem(
                "attack.label_mode", "all_to_all", "a clean-label attack changes no label; all_to_one is"
            )
            return
        if attack.target_class != 0:
            yield Problem(
                "attack.target_class",
                attack.target_class,
                "with label_mode all_to_all it has no meaning; 0 is",
            )
        if attack.share_of_target_class:
            yield Problem(
                "attack.rate_of",
                "target_class",
                "with label_mode all_to_all there is no target class; training_set is",
            )
    yield from _count_problems(spec, attack, facts)
    yield from _shape_problems(attack, facts)
    for name, value, allowed in attack.unfit(facts):
        yield Problem(f"attack.{name}", value, allowed)


def _count_problems(spec: ExperimentSpec, attack: PoisoningAttack, facts: DatasetFacts) -> Iterator[Problem]:
    count, asked = poison_count(spec, facts), attack.poisoning_rate
    in_target = facts.train_counts[attack.target_class]
    if attack.clean_label_only:
        if count > in_target:
            yield Problem(
                "attack.poisoning_rate",
                asked,
                f"a clean-label attack poisons only the {in_target} images of class {attack.target_class}, "
                f"not {count}",
            )
        return
    eligible = facts.train_size if attack.all_to_all else facts.train_size - in_target
    if count > eligible:
        outside = "" if attack.all_to_all else f" outside class {attack.target_class}"
        yield Problem(
            "attack.poisoning_rate",
            asked,
            f"this asks for {count} images; only the {eligible}{outside} can be poisoned",
        )
    elif count + (cross := cross_count(spec, facts)) > facts.train_size:
        name = next(n for n in ("cross_rate", "cross_ratio") if n in type(attack).model_fields)
        yield Problem(
            f"attack.{name}",
            getattr(attack, name),
            f"{count} poisoned and {cross} cross samples are more than the {facts.train_size} training images",
        )


def _shape_problems(attack: PoisoningAttack, facts: DatasetFacts) -> Iterator[Problem]:
    side = min(facts.height, facts.width)
    match attack:
        case BadNets() | Trojan() | HiddenTrigger():
            size = patch_size(attack, facts)
            if size + attack.margin > side:
                yield Problem(
                    "attack.size", size, f"size + margin of at most {side} pixels, the image's side"
                )
        case CleanLabel():
            most = side // 2 if attack.corners == "four" else side
            if attack.size > most:
                yield Problem("attack.size", attack.size, f"at most {most} pixels, for the corners to fit")
        case PoisonFrogs() if attack.target_image is not None and attack.target_image >= facts.test_size:
            yield Problem(
                "attack.target_image", attack.target_image, f"0 to {facts.test_size - 1}, a test image"
            )
        case _:
            yield from _trigger_problems(attack, facts, side)


def _trigger_problems(attack: PoisoningAttack, facts: DatasetFacts, side: int) -> Iterator[Problem]:
    match attack:
        case SinglePixel():
            for name, there in (("row", facts.height), ("column", facts.width)):
                asked = getattr(attack, name)
                if not -there <= asked < there:
                    yield Problem(f"attack.{name}", asked, f"-{there} to {there - 1} in this data set")
        case LowFrequency() if attack.waves > side:
            yield Problem("attack.waves", attack.waves, f"at most {side}, the image's side")
        case WaNet() if attack.grid > side:
            yield Problem("attack.grid", attack.grid, f"at most {side}, the image's side")
        case Refool() if attack.reflections > facts.train_size:
            yield Problem(
                "attack.reflections", attack.reflections, f"at most the {facts.train_size} training images"
            )
        case Blend():
            yield from _pattern_problems(attack, facts)


def _pattern_problems(attack: Blend, facts: DatasetFacts) -> Iterator[Problem]:
    if attack.pattern_index is not None and attack.pattern_index >= facts.train_size:
        yield Problem(
            "attack.pattern_index", attack.pattern_index, f"0 to {facts.train_size - 1}, a training image"
        )
    if attack.pattern_png is not None:
        shape, wanted = png_shape(attack.pattern_png), (facts.channels, facts.height, facts.width)
        if shape != wanted:
            yield Problem("attack.pattern_png", _size(shape), f"a PNG of {_size(wanted)} is")


def _size(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels, {'gray' if channels == 1 else 'color'}"
