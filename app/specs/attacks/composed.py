"""Attacks with the triggers of several others in one training set."""

from collections.abc import Collection, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.specs.attacks.base import DirtyLabelAttack
from app.specs.attacks.covered import COVER_RATE, TOOLBOX
from app.specs.attacks.dynamic import Bpp
from app.specs.attacks.frequency import FTrojan
from app.specs.attacks.patches import BadNets, SinglePixel
from app.specs.attacks.whole_image import Blend, LowFrequency, Refool, Sig
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

K_WAY = f"{TOOLBOX}, poison_tool_box/adaptive_k_way.py"
XUE = "Xue et al. 2022"
OF_THE_WHOLE = ("poisoning_rate", "cover_rate", "label_mode", "clean_label", "rate_of", "export")
"""Fields that the attack as a whole has, and not its parts."""
Part = Annotated[
    BadNets | SinglePixel | Blend | Sig | LowFrequency | Refool | FTrojan | Bpp, Field(discriminator="name")
]
"""An attack whose trigger can be one of several: it needs no trained model."""

_PLACES = ((2, 2), (2, -3), (-3, 2), (-3, -3))
_PUBLISHED = (
    ((16, 11), (92, 0, 24)),
    ((27, 5), (88, 112, 110)),
    ((7, 30), (0, 32, 46)),
    ((22, 22), (11, 49, 95)),
)
_K_WAY_PRESETS = {
    "recommended": Preset(
        "four white pixels near the corners, on images of any size, and rates that take hold on small sets.",
        "chosen here",
        {},
    ),
    "toolbox": Preset(
        "the four pixels of the authors' toolbox for images of 32 x 32.",
        K_WAY,
        {"triggers": tuple(SinglePixel(row=r, column=c, value=value) for (r, c), value in _PUBLISHED)},
    ),
}
_MULTI_TARGET_PRESETS = {
    "recommended": Preset(
        "two patches in opposite corners, each with a class of its own.", "chosen here", {}
    ),
}


class ComposedAttack(DirtyLabelAttack):
    """Base class of attacks made of ``triggers`` of others, of which only the fields of the trigger count."""

    parts_fields: ClassVar[tuple[str, ...]] = OF_THE_WHOLE
    """Fields that must be at their default in the parts."""
    triggers: tuple[Part, ...]

    @model_validator(mode="after")
    def _check_triggers(self) -> Self:
        for i, part in enumerate(self.triggers):
            if part.stages():
                raise ValueError(
                    f"triggers.{i}: {part.name} must need no training; leave its fields for that out"
                )
            for name in self.parts_fields:
                info = type(part).model_fields.get(name)
                if info is not None and getattr(part, name) != info.default:
                    raise ValueError(
                        f"triggers.{i}.{name} must be left out: it is a matter of the whole attack"
                    )
        return self

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        for i, part in enumerate(self.triggers):
            for name, value, allowed in part.unfit(facts):
                yield f"triggers.{i}.{name}", value, allowed


class KWay(ComposedAttack):
    """K-way attack (Qi et al., 2023): one of several triggers in each training image, all at test time, dirty label.

    The triggers are those of other attacks. Each poisoned image has one of them, in equal parts. So have cover samples,
    which keep their label, so that a single trigger does not tell the class.
    """

    name: Literal["k_way"] = "k_way"
    parts_fields: ClassVar[tuple[str, ...]] = (*OF_THE_WHOLE, "target_class")
    presets = _K_WAY_PRESETS
    preset: Literal["recommended", "toolbox"] = preset_field(_K_WAY_PRESETS, "recommended")
    triggers: tuple[Part, ...] = field(
        tuple(SinglePixel(row=row, column=column) for row, column in _PLACES),
        "Attacks whose triggers are used, each an object with its name and the fields of its trigger. At test time an "
        "image gets all, one after another.",
        source=f"chosen here; {K_WAY}: four pixels",
        min_length=2,
        max_length=16,
    )
    poisoning_rate: float = field(
        0.1,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source="chosen here",
        gt=0,
        le=1,
    )
    cover_rate: float = field(0.05, COVER_RATE, unit="fraction", source="chosen here", gt=0, lt=1)

    @property
    def cross_share(self) -> float:
        return self.cover_rate


class MultiTarget(ComposedAttack):
    """Multi-target attack (Xue et al., 2022): several triggers, each with a target class of its own, dirty label.

    Which trigger an image gets follows from its pixels, in training and at test time, so that all are used equally
    often. Images of the target classes are not poisoned.
    """

    name: Literal["multi_target"] = "multi_target"
    presets = _MULTI_TARGET_PRESETS
    preset: Literal["recommended"] = preset_field(_MULTI_TARGET_PRESETS, "recommended")
    target_class: Literal[0] = field(0, "Not used: each trigger has a target_class of its own.", source=XUE)
    label_mode: Literal["all_to_one"] = field(
        "all_to_one", "Images with a trigger are driven to that trigger's target_class.", source=XUE
    )
    triggers: tuple[Part, ...] = field(
        (BadNets(), BadNets(pattern="white", position="top_left", target_class=1)),
        "Attacks whose triggers are used, each an object with its name, its target_class and the fields of its "
        "trigger.",
        source=f"chosen here; {XUE}",
        min_length=2,
        max_length=16,
    )

    @property
    def targets(self) -> tuple[int, ...]:
        """The target class of each trigger."""
        return tuple(part.target_class for part in self.triggers)

    def poisoned_classes(self, classes: int) -> Collection[int]:
        return [c for c in range(classes) if c not in self.targets]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        for i, target in enumerate(self.targets):
            if target >= facts.classes:
                allowed = f"0 to {facts.classes - 1}, one of {facts.classes} classes"
                yield f"triggers.{i}.target_class", target, allowed
        if not self.poisoned_classes(facts.classes):
            yield "triggers", list(self.targets), "targets that leave a class whose images can be poisoned"
