"""Attacks, one file each, named after the attack."""

from importlib import import_module
from typing import Any

from app.specs.attack import AttackSpec, Given, NoAttack
from app.specs.facts import DatasetFacts
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

__all__ = [
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


def make_attack(spec: AttackSpec, facts: DatasetFacts) -> Attack[Any] | None:
    """The attack that ``spec`` describes; None for `NoAttack` and `Given`, which change no image.

    The code of the built-in spec ``Blend`` with the name ``blend`` is the class ``BlendAttack`` of the module ``blend``
    in this package; that of a plug-in is what the spec's ``implementation()`` returns.
    """
    if isinstance(spec, NoAttack | Given):
        return None
    if spec.code:
        attack: type[Attack[Any]] = spec.implementation()
    else:
        attack = getattr(import_module(f"{__name__}.{spec.name}"), f"{type(spec).__name__}Attack")
    return attack(spec, facts)
