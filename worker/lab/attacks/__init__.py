"""Attacks, one file each."""

from typing import Any

from app.specs.attack import (
    AdaptiveBlend,
    AttackSpec,
    BadNets,
    Blend,
    CleanLabel,
    FTrojan,
    Given,
    HiddenTrigger,
    InputAware,
    LowFrequency,
    NoAttack,
    PoisonFrogs,
    Refool,
    Sig,
    SinglePixel,
    Tact,
    Trojan,
    WaNet,
)
from app.specs.facts import DatasetFacts
from worker.lab.attacks.adaptive_blend import AdaptiveBlendAttack
from worker.lab.attacks.badnets import BadNetsAttack
from worker.lab.attacks.base import (
    Attack,
    AttackLab,
    Picture,
    PoisonedSet,
    Prepared,
    State,
    Trigger,
    apply_trigger,
    to_uint8,
)
from worker.lab.attacks.blend import BlendAttack
from worker.lab.attacks.clean_label import CleanLabelAttack
from worker.lab.attacks.ftrojan import FTrojanAttack
from worker.lab.attacks.hidden_trigger import HiddenTriggerAttack
from worker.lab.attacks.input_aware import InputAwareAttack
from worker.lab.attacks.low_frequency import LowFrequencyAttack
from worker.lab.attacks.poison_frogs import PoisonFrogsAttack
from worker.lab.attacks.refool import RefoolAttack
from worker.lab.attacks.sig import SigAttack
from worker.lab.attacks.single_pixel import SinglePixelAttack
from worker.lab.attacks.tact import TactAttack
from worker.lab.attacks.trojan import TrojanAttack
from worker.lab.attacks.wanet import WaNetAttack

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackLab",
    "Picture",
    "PoisonedSet",
    "Prepared",
    "State",
    "Trigger",
    "apply_trigger",
    "make_attack",
    "to_uint8",
]

ATTACKS: dict[type[Any], type[Attack[Any]]] = {
    BadNets: BadNetsAttack,
    SinglePixel: SinglePixelAttack,
    Blend: BlendAttack,
    Sig: SigAttack,
    CleanLabel: CleanLabelAttack,
    InputAware: InputAwareAttack,
    Trojan: TrojanAttack,
    HiddenTrigger: HiddenTriggerAttack,
    PoisonFrogs: PoisonFrogsAttack,
    LowFrequency: LowFrequencyAttack,
    WaNet: WaNetAttack,
    Refool: RefoolAttack,
    AdaptiveBlend: AdaptiveBlendAttack,
    Tact: TactAttack,
    FTrojan: FTrojanAttack,
}
"""The attack of every built-in spec class; a plug-in's spec has an ``implementation()``."""


def make_attack(spec: AttackSpec, facts: DatasetFacts) -> Attack[Any] | None:
    """The attack that ``spec`` describes; None for `NoAttack` and `Given`, which change no image."""
    if isinstance(spec, NoAttack | Given):
        return None
    attack: type[Attack[Any]] = ATTACKS.get(type(spec)) or spec.implementation()
    return attack(spec, facts)
