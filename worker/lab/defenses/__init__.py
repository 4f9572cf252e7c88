"""Defences, one file each."""

from app.specs.defense import Abl, DefenseSpec
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense
from worker.lab.networks import Network

__all__ = ["TrainingDefense", "defend"]


def defend(spec: DefenseSpec, lab: TrainingDefense) -> Network:
    """Run a training defence; returns the defended network."""
    match spec:
        case Abl():
            return abl.run(spec, lab)
