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
from app.specs.attacks.patches import BadNets, SinglePixel, Trojan
from app.specs.attacks.whole_image import Blend, LowFrequency, Refool, Sig
from app.specs.base import Spec
from app.specs.plugins import with_plugins

__all__ = [
    "AdaptiveBlend",
    "AdaptivePatch",
    "AttackSpec",
    "BadNets",
    "Blend",
    "Bpp",
    "CleanLabel",
    "Ctrl",
    "FTrojan",
    "HiddenTrigger",
    "InputAware",
    "KWay",
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


_BUILT_IN = (
    NoAttack
    | BadNets
    | SinglePixel
    | Blend
    | Sig
    | CleanLabel
    | InputAware
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
)
if TYPE_CHECKING:
    AttackSpec = _BUILT_IN
else:
    AttackSpec = Annotated[with_plugins(_BUILT_IN, PoisoningAttack), Field(discriminator="name")]
