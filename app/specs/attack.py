"""Attacks by name: how training data is poisoned and what the trigger is.

``poisoning_rate`` is a share of the whole training set, or of the target class alone where ``rate_of`` says so.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from app.specs.attacks.base import PoisoningAttack, PreparationStage, SurrogateAttack
from app.specs.attacks.clean_label import CleanLabel, HiddenTrigger, PoisonFrogs
from app.specs.attacks.dynamic import InputAware, WaNet
from app.specs.attacks.patches import BadNets, SinglePixel, Trojan
from app.specs.attacks.whole_image import Blend, LowFrequency, Refool, Sig
from app.specs.base import Spec
from app.specs.plugins import extended

__all__ = [
    "AttackSpec",
    "BadNets",
    "Blend",
    "CleanLabel",
    "HiddenTrigger",
    "InputAware",
    "LowFrequency",
    "NoAttack",
    "PoisonFrogs",
    "PoisoningAttack",
    "PreparationStage",
    "Refool",
    "Sig",
    "SinglePixel",
    "SurrogateAttack",
    "Trojan",
    "WaNet",
]


class NoAttack(Spec):
    """Nothing is poisoned. A defense run on it shows what the defense costs on clean data."""

    name: Literal["none"] = "none"


_OURS = (
    NoAttack
    | BadNets
    | SinglePixel
    | Blend
    | Sig
    | CleanLabel
    | InputAware
    | Trojan
    | WaNet
    | Refool
    | HiddenTrigger
    | PoisonFrogs
    | LowFrequency
)
if TYPE_CHECKING:
    AttackSpec = _OURS
else:
    AttackSpec = Annotated[extended(_OURS, PoisoningAttack), Field(discriminator="name")]
