"""Attacks by name."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from app.specs.attacks.base import PoisoningAttack, PreparationStage, SurrogateAttack
from app.specs.attacks.clean_label import CleanLabel, HiddenTrigger, Narcissus, PoisonFrogs
from app.specs.attacks.composed import KWay, MultiTarget
from app.specs.attacks.covered import AdaptiveBlend, AdaptivePatch, Tact
from app.specs.attacks.dynamic import Bpp, InputAware, WaNet
from app.specs.attacks.frequency import Ctrl, FTrojan
from app.specs.attacks.gradient_matching import SleeperAgent, WitchesBrew
from app.specs.attacks.learned import Issba, Lira
from app.specs.attacks.patches import BadNets, SinglePixel, Trojan
from app.specs.attacks.training_control import AdversarialEmbedding, Blind
from app.specs.attacks.whole_image import Blend, LowFrequency, Refool, Sig
from app.specs.base import Spec, field
from app.specs.plugins import with_plugins

__all__ = [
    "AdaptiveBlend",
    "AdaptivePatch",
    "AdversarialEmbedding",
    "AttackSpec",
    "BadNets",
    "Blend",
    "Blind",
    "Bpp",
    "CleanLabel",
    "Ctrl",
    "FTrojan",
    "Given",
    "HiddenTrigger",
    "InputAware",
    "Issba",
    "KWay",
    "Lira",
    "LowFrequency",
    "MultiTarget",
    "Narcissus",
    "NoAttack",
    "PoisonFrogs",
    "PoisoningAttack",
    "PreparationStage",
    "Refool",
    "Sig",
    "SinglePixel",
    "SleeperAgent",
    "SurrogateAttack",
    "Tact",
    "Trojan",
    "WaNet",
    "WitchesBrew",
]


class NoAttack(Spec):
    """No attack: nothing is poisoned. Shows what a defense costs on clean data."""

    name: Literal["none"] = "none"


class Given(Spec):
    """The dataset came poisoned: it is used as it is, and nothing is added. For imported and uploaded datasets.

    What the dataset says about itself is used for scores only: which training images are poisoned, and test images with
    the trigger. Without the former, isolation and detection have no scores; without the latter, attack success is null.
    """

    name: Literal["given"] = "given"
    target_class: int | None = field(
        None,
        "Class that the attacker aims at, if you know it. Null: as the dataset says for each triggered test image, or "
        "else the label of its marked poisoned images if they have only one; if neither is known, attack success is "
        "null.",
        source="chosen here",
        ge=0,
    )
    triggered_test: Literal["auto", "dataset", "none"] = field(
        "auto",
        "Test images with the trigger, which attack success is measured on. auto: those of the dataset, if it has any. "
        "dataset: those of the dataset, which must have some. none: attack success is not measured.",
        source="chosen here",
    )
    clean_share: float = field(
        0.25,
        "Share of the test images that are set aside as clean set of the defenses that need one, since the training "
        "images are not known to be clean. They are not measured on, in any arm.",
        unit="fraction",
        source="chosen here",
        ge=0,
        le=0.9,
    )


_BUILT_IN = (
    NoAttack
    | BadNets
    | SinglePixel
    | Blend
    | Sig
    | CleanLabel
    | InputAware
    | Lira
    | Issba
    | Blind
    | AdversarialEmbedding
    | Trojan
    | WaNet
    | Bpp
    | Refool
    | HiddenTrigger
    | PoisonFrogs
    | LowFrequency
    | AdaptiveBlend
    | AdaptivePatch
    | Tact
    | FTrojan
    | Ctrl
    | Narcissus
    | WitchesBrew
    | SleeperAgent
    | KWay
    | MultiTarget
    | Given
)
if TYPE_CHECKING:
    AttackSpec = _BUILT_IN
else:
    AttackSpec = Annotated[with_plugins(_BUILT_IN, PoisoningAttack), Field(discriminator="name")]
