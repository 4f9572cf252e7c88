"""Clean-label attacks whose poison makes the victim's own training move towards the attacker's goal."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from app.specs.attacks.base import (
    RATE_OF,
    CleanLabelAttack,
    Position,
    PreparationStage,
    RateOf,
    SquarePatchAttack,
    SurrogateAttack,
)
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

WITCHES_CODE = "github.com/JonasGeiping/poisoning-gradient-matching, forest/options.py"
SLEEPER_CODE = "github.com/hsouri/Sleeper-Agent, forest/options.py"

_WITCHES_PRESETS = {
    "authors": Preset(
        "the defaults of the authors' code: the best of eight restarts.",
        WITCHES_CODE,
        {},
    ),
    "one_restart": Preset("an eighth of the time.", "chosen here", {"craft_restarts": 1}),
}
_SLEEPER_PRESETS = {
    "authors": Preset("the defaults of the authors' code for CIFAR-10.", SLEEPER_CODE, {}),
    "without_retraining": Preset(
        "the surrogate is not trained again on the poison while that is made: weaker, and faster.",
        "Souri et al. 2022 (ablation)",
        {"craft_retrainings": 0},
    ),
}


class GradientMatchingAttack(CleanLabelAttack, SurrogateAttack):
    """Base class of attacks that align the gradient of the poison with that of the attacker's goal."""

    needs_gradients: ClassVar[bool] = True
    poisoning_rate: float = field(
        0.01,
        "Share of the training set (or of the target class, see rate_of) that is poisoned.",
        unit="fraction",
        source=f"{WITCHES_CODE} and {SLEEPER_CODE} (budget)",
        gt=0,
        le=1,
    )
    rate_of: RateOf = field("training_set", RATE_OF, source=WITCHES_CODE)
    craft_epsilon: float = field(
        16.0,
        "l_inf bound on the change of a poisoned image.",
        unit="gray levels (0-255)",
        source=f"{WITCHES_CODE} and {SLEEPER_CODE} (eps)",
        gt=0,
        le=255,
    )
    craft_steps: int = field(
        250,
        "Steps of Adam on the signs of the gradient; each one is over all poisoned images.",
        unit="steps",
        source=f"{WITCHES_CODE} and {SLEEPER_CODE} (attackiter)",
        ge=1,
        le=100_000,
    )
    craft_learning_rate: float = field(
        0.1,
        "Learning rate of Adam, in deviations of the training pixels; a tenth after 3/8, 5/8 and 7/8 of the steps.",
        source=f"{WITCHES_CODE} and {SLEEPER_CODE} (tau, scheduling)",
        gt=0,
        le=10,
    )
    craft_batch: int = field(
        512,
        "Poisoned images whose gradient is matched together.",
        unit="images",
        source=f"{WITCHES_CODE} and {SLEEPER_CODE} (pbatch)",
        ge=1,
        le=10_000,
    )

    @property
    def selection(self) -> dict[str, Any]:
        """The fields that the poisoned rows depend on."""
        return {"target_class": self.target_class, "rate": self.poisoning_rate, "of": self.rate_of}


class WitchesBrew(GradientMatchingAttack):
    """Witches' Brew (Geiping et al., 2021): gradient matching, so that one test image gets the target class.

    There is no trigger. The poisoned images of the target class are changed slightly, so that the gradient of their
    loss has the direction of the gradient that would teach the target class for the test image. The attack succeeds if
    the test image is classified as the target class (``target_image_hit``).
    """

    name: Literal["witches_brew"] = "witches_brew"
    presets = _WITCHES_PRESETS
    preset: Literal["authors", "one_restart"] = preset_field(_WITCHES_PRESETS, "authors")
    target_image: int | None = field(
        None,
        "Index of the test image to be misclassified, in the subset used. Null: drawn by the seed.",
        source="Geiping et al. 2021",
        ge=0,
    )
    craft_restarts: int = field(
        8,
        "Times that the poison is made, each from another random change; the best one is used.",
        unit="times",
        source=f"{WITCHES_CODE} (restarts)",
        ge=1,
        le=100,
    )

    def stages(self) -> list[PreparationStage]:
        fields = self.selection | {"target_image": self.target_image} | self.fields_with("craft_")
        return [self.surrogate_stage(), PreparationStage("poisons", fields, 5 * self.craft_restarts)]

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        if self.target_image is not None and self.target_image >= facts.test_size:
            yield "target_image", self.target_image, f"0 to {facts.test_size - 1}, a test image"


class SleeperAgent(GradientMatchingAttack, SquarePatchAttack):
    """Sleeper Agent (Souri et al., 2022): gradient matching for a hidden patch, against victims trained from scratch.

    The poisoned images of the target class do not show the patch. The gradient of their loss has the direction of the
    gradient that would teach the target class for source-class images with the patch. Those with the largest gradient
    are poisoned, and the surrogate is trained again on the poison several times while that is made.
    """

    name: Literal["sleeper_agent"] = "sleeper_agent"
    presets = _SLEEPER_PRESETS
    preset: Literal["authors", "without_retraining"] = preset_field(_SLEEPER_PRESETS, "authors")
    source_class: int = field(
        1, "Class whose images the patch works on.", source="chosen here; Souri et al. 2022: random", ge=0
    )
    size: int = field(8, "Side of the square patch.", unit="pixels", source=SLEEPER_CODE, ge=1, le=224)
    position: Position | Literal["random"] = field(
        "random",
        "Position of the patch. random: anywhere; it follows from the image and the seed.",
        source=f"{SLEEPER_CODE} (random_patch)",
    )
    margin: int = field(
        0, "Distance of the patch from the image's edges.", unit="pixels", source="chosen here", ge=0, le=112
    )
    craft_selection: Literal["gradient", "random"] = field(
        "gradient",
        "gradient: the images of the target class with the largest gradient of the surrogate's loss are poisoned. "
        "random: drawn by the seed, as for other attacks.",
        source=f"{SLEEPER_CODE} (poison_selection_strategy)",
    )
    craft_retrainings: int = field(
        4,
        "Times that the surrogate is trained again, from scratch and on the poison so far, at equal distances.",
        unit="times",
        source=f"{SLEEPER_CODE} (retrain_iter)",
        ge=0,
        le=20,
    )

    def stages(self) -> list[PreparationStage]:
        patch = {n: getattr(self, n) for n in ("size", "position", "margin", "source_class")}
        fields = self.selection | patch | self.fields_with("craft_")
        retraining = self.surrogate_stage()
        planned = [retraining]
        for part in range(self.craft_retrainings + 1):
            if part:
                planned.append(retraining._replace(kind=f"retraining_{part}"))
            planned.append(PreparationStage(f"poisons_{part + 1}", fields, 5))
        return planned

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        yield from super().unfit(facts)
        if self.source_class == self.target_class or self.source_class >= facts.classes:
            allowed = f"0 to {facts.classes - 1} except {self.target_class}, the target class"
            yield "source_class", self.source_class, allowed
