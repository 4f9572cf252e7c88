"""The study preset `bench`: the attacks and defenses of BackdoorBench's public leaderboard on CIFAR-10."""

from typing import Any

from app.specs.attack import AttackSpec
from app.specs.base import Spec, specs_by_name
from app.specs.defense import DefenseSpec

ATTACKS = (
    "badnets",
    "blend",
    "bpp",
    "clean_label",
    "ctrl",
    "ftrojan",
    "input_aware",
    "issba",
    "lira",
    "low_frequency",
    "refool",
    "sig",
    "trojan",
    "wanet",
)
"""Those of the leaderboard (its README, "Supported attacks") that this project has.

Not `blind`: it poisons no image, and half of the defenses cannot be tried on it.
"""
DEFENSES = (
    "abl",
    "activation_clustering",
    "anp",
    "beatrix",
    "bnp",
    "clp",
    "d_br",
    "d_st",
    "dbd",
    "ep",
    "fine_pruning",
    "fine_tuning",
    "ft_sam",
    "i_bau",
    "mcr",
    "nab",
    "nad",
    "neural_cleanse",
    "npd",
    "rnp",
    "sau",
    "scan",
    "spectral_signatures",
    "spectre",
    "strip",
)
"""Those of the leaderboard (its README, "Supported defenses") that this project has."""
TRAINING = {
    "epochs": 100,
    "learning_rate": 0.01,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
"""config/attack/prototype/cifar10.yaml of BackdoorBench."""


def bench_study() -> dict[str, Any]:
    """The fields that the preset fills. A method has its preset `benchmark`, if there is one, else its default."""
    attacks, defenses = specs_by_name(AttackSpec), specs_by_name(DefenseSpec)
    return {
        "name": "bench",
        "dataset": {"name": "cifar10"},
        "model": {"name": "preact_resnet18"},
        "training": TRAINING,
        "attacks": [{"attack": _as_benchmark(attacks[name])} for name in ATTACKS],
        "defenses": [_as_benchmark(defenses[name]) for name in DEFENSES],
    }


def _as_benchmark(cls: type[Spec]) -> dict[str, str]:
    name = {"name": cls.model_fields["name"].default}
    return {**name, "preset": "benchmark"} if "benchmark" in getattr(cls, "presets", {}) else name
