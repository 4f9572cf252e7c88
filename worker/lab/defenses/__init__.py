"""Defenses, one file each."""

from typing import Any

from app.specs.defense import DefenseSpec
from app.specs.defenses.abl import Abl
from app.specs.defenses.abl_plus import AblPlus
from app.specs.defenses.detection import ActivationClustering, NeuralCleanse, SpectralSignatures, Strip
from app.specs.defenses.nab import Nab
from app.specs.defenses.repair import Anp, FinePruning, FineTuning, FtSam, IBau, Mcr, Nad
from worker.lab.defenses import (
    abl,
    abl_plus,
    activation_clustering,
    anp,
    fine_pruning,
    fine_tuning,
    ft_sam,
    i_bau,
    mcr,
    nab,
    nad,
    neural_cleanse,
    spectral_signatures,
    strip,
)
from worker.lab.defenses.base import Defense
from worker.lab.networks import Network

__all__ = ["defend"]

_IMPLEMENTATIONS: dict[type, Any] = {
    Abl: abl.run,
    AblPlus: abl_plus.run,
    FineTuning: fine_tuning.run,
    FinePruning: fine_pruning.run,
    Nad: nad.run,
    Mcr: mcr.run,
    FtSam: ft_sam.run,
    Anp: anp.run,
    IBau: i_bau.run,
    SpectralSignatures: spectral_signatures.run,
    ActivationClustering: activation_clustering.run,
    Strip: strip.run,
    NeuralCleanse: neural_cleanse.run,
    Nab: nab.run,
}
"""(spec, what its kind of defense may see) to the defended network, by built-in spec class; a plug-in's spec has an
``implementation()``."""


def defend(spec: DefenseSpec, lab: Defense) -> Network:
    """Run a defense on what its kind may see; returns the defended network."""
    run = _IMPLEMENTATIONS.get(type(spec)) or spec.implementation()
    network: Network = run(spec, lab)
    return network
