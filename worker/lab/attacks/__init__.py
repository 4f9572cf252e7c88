"""Attacks, one file each."""

from typing import Any

from app.specs.attack import AttackSpec, BadNets, Blend, NoAttack, Sig
from app.specs.facts import DatasetFacts
from worker.lab.attacks.badnets import BadNetsAttack
from worker.lab.attacks.base import Attack, PoisonedSet, State, Trigger
from worker.lab.attacks.blend import BlendAttack
from worker.lab.attacks.sig import SigAttack

__all__ = ["ATTACKS", "Attack", "PoisonedSet", "State", "Trigger", "make"]

ATTACKS: dict[type[Any], type[Attack[Any]]] = {BadNets: BadNetsAttack, Blend: BlendAttack, Sig: SigAttack}
"""The attack of every spec class; a new attack is one file, its spec, and one entry here."""


def make(spec: AttackSpec, facts: DatasetFacts) -> Attack[Any] | None:
    """The attack that ``spec`` describes, or None if nothing is attacked."""
    return None if isinstance(spec, NoAttack) else ATTACKS[type(spec)](spec, facts)
