"""Small experiments on digits. Their stages are kept for the test session, so that each victim is trained once."""

from typing import Any

import torch

from tests.lab.memory import MemoryRecorder, MemoryStore, experiment

Spec = dict[str, Any]
STORE = MemoryStore()
BADNETS: Spec = {"name": "badnets"}
NOTHING: Spec = {"name": "none"}

# The shortest form of every defense, for tests that do not need good numbers.
SHORT: dict[str, Spec] = {
    "abl_plus": {},
    "fine_tuning": {"steps": 8},
    "fine_pruning": {"steps": 8},
    "nad": {"teacher_steps": 4, "steps": 8},
    "mcr": {"tuning_steps": 4, "steps": 8},
    "ft_sam": {"steps": 8},
    "anp": {"steps": 40},
    "i_bau": {"rounds": 2, "steps": 8},
    "rnp": {"unlearning_steps": 8, "recovering_steps": 8},
    "sau": {"steps": 4, "attack_steps": 1},
    "npd": {"warm_up_steps": 4, "steps": 4},
    "bti_dbf": {"rounds": 1, "generator_steps": 4, "mask_steps": 4, "trigger_steps": 4, "steps": 4},
    "clp": {},
    "bnp": {},
    "ep": {"images": 100},
    "fe_tuning": {"steps": 4},
    "fst": {"steps": 8},
    "spectral_signatures": {},
    "activation_clustering": {},
    "strip": {"overlays": 4},
    "neural_cleanse": {"epochs": 3, "anomaly_threshold": 0.5, "unlearning_epochs": 2, "success": 0.2},
    "strip_inputs": {"overlays": 4},
    "scale_up": {},
    "ibd_psc": {},
    "teco": {"corruptions": ["shot_noise", "contrast"], "severities": 2},
    "flare": {"min_cluster_size": 5, "map_epochs": 20},
    "scan": {},
    "spectre": {},
    "beatrix": {},
    "cognitive_distillation": {"steps": 2},
    "sentinet": {"backgrounds": 4},
    "asset": {"steps": 2, "separation_steps": 2},
    "meta_sift": {"sifters": 2, "warm_up_steps": 1, "steps": 1, "then": "nothing"},
    "confusion_training": {"epochs": 1, "confusion_steps": 3},
    "nab": {"isolation_epochs": 2, "ranking_window": 1, "labelling_epochs": 2},
    "cbd": {"biased_epochs": 1, "epochs": 2},
    "dbd": {"feature_epochs": 1, "head_epochs": 1, "mixmatch_epochs": 2, "mixmatch_steps": 2},
    "d_st": {"biased_epochs": 1, "tuning_epochs": 1, "feature_epochs": 1, "head_epochs": 1},
    "d_br": {"biased_epochs": 1, "tuning_epochs": 1, "rounds": 1, "least_steps": 1},
    "asd": {"growth_epochs": 1, "loss_epochs": 1, "meta_epochs": 1, "mixmatch_steps": 2},
    "pdb": {"epochs": 1},
    "vab": {"victim_epochs": 1, "mixed_epochs": 1, "suppressed_epochs": 1},
}
ALL: list[Spec] = [{"name": name, **fields} for name, fields in SHORT.items()]


def spec(attack: Spec, *defenses: Spec, epochs: int = 20, seed: int = 0) -> Spec:
    return {"attack": attack, "defenses": list(defenses), "training": {"epochs": epochs}, "seeds": [seed]}


def defended(
    attack: Spec, *defenses: Spec, epochs: int = 20, seed: int = 0, store: MemoryStore = STORE
) -> MemoryRecorder:
    """Run the defenses on digits with one thread: more threads only compete when several tests run at a time."""
    torch.set_num_threads(1)
    recorder = experiment(
        spec(attack, *defenses, epochs=epochs, seed=seed), store=store, checkpoint_seconds=1e9
    )
    assert not recorder.failures
    return recorder


def number(recorder: MemoryRecorder, arm: str, metric: str, seed: int = 0) -> float:
    value = recorder.results[arm, seed][metric]
    assert value is not None
    return value
