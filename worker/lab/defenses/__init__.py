"""Defenses, one file each."""

from importlib import import_module
from typing import Any

from app.specs.defense import DefenseSpec
from worker.lab.compute import Compute
from worker.lab.defenses.base import Defense, InputDetectionDefense
from worker.lab.defenses.input_detection import InputDetector, detect_inputs
from worker.lab.networks import Network

__all__ = ["defend", "make_detector"]


def defend(spec: DefenseSpec, lab: Defense) -> Network:
    """Run a defense on what its kind may see; returns the defended network.

    The code of the built-in spec with the name ``anp`` is the function ``run`` of the module ``anp`` in this package.
    Of an input detection it is the class ``Detector``; of a plug-in it is what ``implementation()`` returns.
    """
    if isinstance(lab, InputDetectionDefense):
        return detect_inputs(make_detector(spec, lab.victim, lab.compute, lab.seed), lab)
    network: Network = _load_code(spec, "run")(spec, lab)
    return network


def make_detector(spec: DefenseSpec, network: Network, compute: Compute, seed: int) -> InputDetector[Any]:
    """The detector of an input detection, for ``network``."""
    detector: InputDetector[Any] = _load_code(spec, "Detector")(spec, network, compute, seed)
    return detector


def _load_code(spec: DefenseSpec, name: str) -> Any:
    return spec.implementation() if spec.code else getattr(import_module(f"{__name__}.{spec.name}"), name)
