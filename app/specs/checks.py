"""Checks of a spec against the facts of its dataset and victim, made at submission, before any compute time is spent.

The service and the lab run them; the Python client leaves them to the service.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from app.specs.attack import Given, PoisoningAttack
from app.specs.attacks.base import SURROGATE
from app.specs.base import canonical_json
from app.specs.dataset import Imported, Uploaded
from app.specs.defenses.base import CleanSetDefense
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec
from app.specs.models.base import Architecture

MAX_EXPORTED_BYTES = 4 * 2**30
"""Most bytes of images that an export, which is made in memory, may have."""


@dataclass(frozen=True)
class Problem:
    """A value that a spec cannot have: the field's path, the value, and what is allowed instead."""

    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value!r} is not allowed; allowed: {self.allowed}"


def poison_count(spec: ExperimentSpec, facts: DatasetFacts) -> int:
    """Number of training images that ``spec.attack`` poisons: the rate of the whole set or of the target class,
    rounded, and at least one. ``facts`` are those of the subset that the spec uses."""
    attack = spec.attack
    if not isinstance(attack, PoisoningAttack):
        return 0
    size = facts.train_counts[attack.target_class] if attack.share_of_target_class else facts.train_size
    return max(1, round(attack.poisoning_rate * size))


def cross_count(spec: ExperimentSpec, facts: DatasetFacts) -> int:
    """Number of cross samples: training images that carry another image's trigger and keep their label."""
    share = spec.attack.cross_share if isinstance(spec.attack, PoisoningAttack) else 0.0
    return max(1, round(share * facts.train_size)) if share else 0


def find_problems(spec: ExperimentSpec, facts: DatasetFacts) -> list[Problem]:
    """Every reason why ``spec`` cannot run on its dataset. ``facts`` are those of the whole dataset."""
    return list(_problems(spec, facts))


def find_victim_problems(
    spec: ExperimentSpec, model: ModelSpec, shape: Shape, adds_trigger: bool, facts: DatasetFacts
) -> list[Problem]:
    """Every reason why a victim that the user provides does not fit ``spec``.

    ``model`` and ``shape`` are the victim's architecture and the images that it was trained on, ``facts`` those of
    the spec's dataset. A victim that ``adds_trigger`` to its input, as models defended by nab do, cannot be repaired.
    """
    problems = []
    if spec.model != model:
        allowed = f"the victim's architecture, {canonical_json(model)}"
        problems.append(Problem("model", spec.model.model_dump(mode="json"), allowed))
    # A local file is not named in the spec, so `find_problems` does not see it.
    if spec.victim is None and spec.training.start != "scratch":
        problems.append(Problem("training.start", spec.training.start, "scratch, since the victim is given"))
    if facts.shape != shape:
        problems.append(Problem("dataset", str(facts.shape), f"the images of the victim, {shape}"))
    if adds_trigger:
        allowed = "training defenses only, since the victim adds a trigger to its input, as models defended by nab do"
        problems += [
            Problem(f"defenses.{i}.name", defense.arm_name, allowed)
            for i, defense in enumerate(spec.defenses)
            if defense.kind != "training"
        ]
    return problems


def find_size_problem(model: Architecture, facts: DatasetFacts | Shape) -> Problem | None:
    """Why ``model`` cannot be built for images of that size; None if it can."""
    height, width = facts.height, facts.width
    side = min(height, width)
    traits = model.traits(side)
    if side < traits.least_side:
        allowed = f"at least {traits.least_side}x{traits.least_side} pixels, the least size of {model.label}"
    elif traits.square and height != width:
        allowed = f"square images, since {model.label} is built for one size"
    elif height % traits.multiple or width % traits.multiple:
        below, above = (side // traits.multiple + i for i in (0, 1))
        allowed = (
            f"a width and height that are a multiple of {traits.multiple} pixels for {model.label}, such as "
            f"{below * traits.multiple} or {above * traits.multiple}"
        )
    else:
        return None
    return Problem("dataset", f"images of {width}x{height} pixels", allowed)


def _trait_problems(spec: ExperimentSpec, facts: DatasetFacts) -> Iterator[Problem]:
    """Defenses that need what the architecture lacks."""
    traits = spec.model.traits(min(facts.height, facts.width))
    for i, defense in enumerate(spec.defenses):
        lacks = []
        if defense.needs_batch_norm and not traits.batch_norm:
            lacks.append("batch normalization")
        if defense.needs_spatial_maps and not traits.spatial_maps:
            lacks.append("feature maps of three resolutions")
        if lacks:
            allowed = f"a defense that does not need {' and '.join(lacks)}: {spec.model.label} has none"
            yield Problem(f"defenses.{i}.name", defense.name, allowed)


def _problems(spec: ExperimentSpec, full: DatasetFacts) -> Iterator[Problem]:
    if problem := find_size_problem(spec.model, full):
        yield problem
    yield from _trait_problems(spec, full)
    for part in ("train", "test"):
        size, available = getattr(spec.dataset, f"{part}_size"), getattr(full, f"{part}_size")
        if size is None:
            continue
        if size > available:
            yield Problem(
                f"dataset.{part}_size", size, f"at most {available}, all {part} images of the dataset"
            )
        if size < full.classes:
            yield Problem(f"dataset.{part}_size", size, f"at least {full.classes}, one image per class")
    facts = full.subset(spec.dataset)
    batch_size = spec.training.batch_size
    if batch_size > facts.train_size:
        yield Problem("training.batch_size", batch_size, f"at most {facts.train_size}, all training images")
    yield from _start_problems(spec)
    yield from _defense_problems(spec, facts)
    if isinstance(spec.attack, Given):
        yield from _given_problems(spec, spec.attack, facts)
    elif facts.poisoned:
        allowed = f"given, since {facts.poisoned} training images of the dataset are marked as poisoned"
        yield Problem("attack.name", spec.attack.name, allowed)
    elif isinstance(spec.attack, PoisoningAttack):
        yield from _attack_problems(spec, spec.attack, facts)


def _defense_problems(spec: ExperimentSpec, facts: DatasetFacts) -> Iterator[Problem]:
    for i, defense in enumerate(spec.defenses):
        for name, value, allowed in defense.unfit(facts):
            yield Problem(f"defenses.{i}.{name}", value, allowed)
        if not isinstance(defense, CleanSetDefense):
            continue
        if round(defense.clean_ratio * facts.train_size) < facts.classes:
            least = f"at least {facts.classes / facts.train_size:.3g}, one clean image per class"
            yield Problem(f"defenses.{i}.clean_ratio", defense.clean_ratio, least)


def _start_problems(spec: ExperimentSpec) -> Iterator[Problem]:
    start = spec.training.start
    if start == "scratch":
        if spec.training.fine_tuning is not None:
            value = spec.training.fine_tuning.model_dump(mode="json")
            yield Problem("training.fine_tuning", value, "null, since training.start is scratch")
        return
    kinds = [stage.kind for stage in spec.attack.stages()] if isinstance(spec.attack, PoisoningAttack) else []
    if SURROGATE not in kinds:
        allowed = f"scratch, since the attack {spec.attack.name} trains no surrogate"
        yield Problem("training.start", start, allowed)
    elif spec.victim is not None:
        yield Problem("training.start", start, "scratch, since the victim is given and not trained")


def clean_pool_size(attack: Given, facts: DatasetFacts) -> int:
    """Number of test images that are set aside for clean sets; ``facts`` are those of the subset that the spec uses."""
    return round(attack.clean_share * facts.test_size)


def clean_set_size(defense: CleanSetDefense, facts: DatasetFacts) -> int:
    """Number of images of the defense's clean set; ``facts`` are those of the subset that the spec uses."""
    return max(2, round(defense.clean_ratio * facts.train_size))


def _given_problems(spec: ExperimentSpec, attack: Given, facts: DatasetFacts) -> Iterator[Problem]:
    if not isinstance(spec.dataset, Imported | Uploaded):
        allowed = f"any other attack, since {spec.dataset.name} is clean; given is for an imported or uploaded dataset"
        yield Problem("attack.name", attack.name, allowed)
        return
    if spec.reference:
        yield Problem("reference", True, "false, since the clean version of a given dataset is not known")
    if attack.target_class is not None and attack.target_class >= facts.classes:
        allowed = f"0 to {facts.classes - 1}, one of {facts.classes} classes, or null"
        yield Problem("attack.target_class", attack.target_class, allowed)
    if attack.triggered_test == "dataset" and not facts.triggered:
        allowed = (
            "auto or none, since the dataset has no triggered test images (x_test_triggered, test_triggered/)"
        )
        yield Problem("attack.triggered_test", attack.triggered_test, allowed)
    pool = clean_pool_size(attack, facts)
    if facts.test_size - pool < facts.classes:
        allowed = f"at most {1 - facts.classes / facts.test_size:.3g}, which leaves a test image per class"
        yield Problem("attack.clean_share", attack.clean_share, allowed)
    for i, defense in enumerate(spec.defenses):
        if isinstance(defense, CleanSetDefense) and (size := clean_set_size(defense, facts)) > pool:
            allowed = (
                f"at most {pool / facts.train_size:.3g}, since the clean set of {size} images is taken from the {pool} "
                "test images of attack.clean_share"
            )
            yield Problem(f"defenses.{i}.clean_ratio", defense.clean_ratio, allowed)


def _attack_problems(spec: ExperimentSpec, attack: PoisoningAttack, facts: DatasetFacts) -> Iterator[Problem]:
    images = (facts.train_size + facts.test_size) * facts.channels * facts.height * facts.width
    if attack.export and images > MAX_EXPORTED_BYTES:
        most = f"at most {MAX_EXPORTED_BYTES >> 30} GiB are exported"
        allowed = f"false, since the images have {images / 2**30:.1f} GiB, and {most}"
        yield Problem("attack.export", True, allowed)
    target = attack.target_class
    if target >= facts.classes:
        yield Problem(
            "attack.target_class", target, f"0 to {facts.classes - 1}, one of {facts.classes} classes"
        )
        return
    if attack.all_to_all:
        if attack.clean_label_only:
            allowed = "all_to_one, since a clean-label attack changes no label"
            yield Problem("attack.label_mode", "all_to_all", allowed)
            return
        reason = "since label_mode all_to_all has no single target class"
        if target != 0:
            yield Problem("attack.target_class", target, f"0, {reason}")
        if attack.share_of_target_class:
            yield Problem("attack.rate_of", "target_class", f"training_set, {reason}")
    traits = spec.model.traits(min(facts.height, facts.width))
    if attack.needs_gradients and not traits.gradients:
        allowed = (
            f"an attack that does not match gradients: those of {spec.model.label} cannot be differentiated"
        )
        yield Problem("attack.name", spec.attack.name, allowed)
    unfit = [Problem(f"attack.{name}", value, allowed) for name, value, allowed in attack.unfit(facts)]
    if not unfit:  # fields that do not fit may name classes that do not exist
        yield from _count_problems(spec, attack, facts)
    yield from unfit


def _count_problems(spec: ExperimentSpec, attack: PoisoningAttack, facts: DatasetFacts) -> Iterator[Problem]:
    count, classes = poison_count(spec, facts), attack.poisoned_classes(facts.classes)
    eligible = _count_images(classes, facts)
    if count > eligible:
        allowed = (
            f"a rate of at most {eligible} images{_of_classes(classes, facts)}; this one selects {count}"
        )
        yield Problem("attack.poisoning_rate", attack.poisoning_rate, allowed)
        return
    covering = attack.cross_classes(facts.classes)
    left = _count_images(covering, facts) - (count if set(classes) & set(covering) else 0)
    if (cross := cross_count(spec, facts)) > left:
        where = _of_classes(covering, facts)
        allowed = f"at most {left} cross samples{where} beside {count} poisoned ones; this is {cross}"
        name = attack.cross_field
        yield Problem(f"attack.{name}", getattr(attack, name), allowed)


def _count_images(classes: Collection[int], facts: DatasetFacts) -> int:
    return sum(facts.train_counts[c] for c in set(classes) if c < facts.classes)


def _of_classes(classes: Collection[int], facts: DatasetFacts) -> str:
    """Words that follow "images"; empty for all classes."""
    others = [c for c in range(facts.classes) if c not in classes]
    if not others:
        return ""
    listed, word = (others, "outside") if len(others) < len(classes) else (sorted(classes), "of")
    return f" {word} class{'es' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
