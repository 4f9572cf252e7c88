"""Defenses, one file each."""

from importlib import import_module

from app.specs.defense import DefenseSpec
from worker.lab.defenses.base import Defense
from worker.lab.networks import Network

__all__ = ["defend"]


def defend(spec: DefenseSpec, lab: Defense) -> Network:
    """Run a defense on what its kind may see; returns the defended network.

    The code of the built-in spec with the name ``anp`` is the function ``run`` of the module ``anp`` in this package;
    that of a plug-in is what the spec's ``implementation()`` returns.
    """
    run = spec.implementation() if spec.code else import_module(f"{__name__}.{spec.name}").run
    network: Network = run(spec, lab)
    return network
