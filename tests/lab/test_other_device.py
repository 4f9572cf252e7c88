"""The lab on a device that is not the CPU: no tensor meets one of another device, fresh or from the cache."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.utils._pytree import tree_leaves

from app.specs.experiment import ExperimentSpec
from tests.lab.defenses.cases import SHORT, Spec
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore, experiment
from tests.lab.other_device import MixedDevicesError, other_device
from worker.lab import figures
from worker.lab.compute import Compute, choose_compute
from worker.lab.contracts import CanceledError, NonFiniteLossError
from worker.lab.defenses import abl, abl_plus, removal, signs
from worker.lab.experiment import run_experiment
from worker.lab.interactive import predict

# What torch says of loading weights into a network on "meta"; here they are loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
SURROGATE = {"surrogate_epochs": 1}
ATTACKS: dict[str, Spec] = {
    "none": {"name": "none"},
    "badnets": {"name": "badnets"},
    "all_to_all": {"name": "badnets", "label_mode": "all_to_all", "export": True},
    "single_pixel": {"name": "single_pixel"},
    "blend": {"name": "blend"},
    "blend_of_an_image": {"name": "blend", "pattern": "image", "pattern_index": 3},
    "sig": {"name": "sig"},
    "clean_label": {"name": "clean_label", **SURROGATE, "surrogate_steps": 2, "pgd_steps": 2},
    "clean_label_l_2": {
        "name": "clean_label",
        **SURROGATE,
        "surrogate_adversarial": False,
        "pgd_steps": 2,
        "pgd_norm": "l_2",
        "pgd_epsilon": 300,
    },
    "input_aware": {"name": "input_aware", "mask_epochs": 1, "generator_epochs": 1},
    "lira": {"name": "lira", "generator_epochs": 1, "classifier_epochs": 1, "hand_over": True},
    "issba": {"name": "issba", "code_bits": 4, "encoder_steps": 2},
    "blind": {"name": "blind", "joint_epochs": 1, "history_epochs": 0.25, "loss_threshold": 99},
    "adversarial_embedding": {"name": "adversarial_embedding", "joint_epochs": 1, "feature_noise": 1},
    "adversarial_embedding_in_epochs": {
        "name": "adversarial_embedding",
        "discriminator_training": "epochs",
        "discriminator_epochs": 1,
        "joint_epochs": 1,
    },
    "trojan": {"name": "trojan", **SURROGATE, "patch_steps": 2},
    "wanet": {"name": "wanet", "joint_epochs": 1},
    "refool": {"name": "refool", "ghost_rate": 0.5, "reflections": 20},
    "hidden_trigger": {"name": "hidden_trigger", **SURROGATE, "craft_steps": 2},
    "poison_frogs": {"name": "poison_frogs", **SURROGATE, "craft_steps": 2, "rate_of": "training_set"},
    "poison_frogs_of_an_image": {
        "name": "poison_frogs",
        **SURROGATE,
        "craft_steps": 2,
        "target_image": 4,
        "rate_of": "training_set",
    },
    "narcissus": {"name": "narcissus", **SURROGATE, "pattern_steps": 2, "poisoning_rate": 0.02},
    "witches_brew": {"name": "witches_brew", **SURROGATE, "craft_steps": 2, "craft_restarts": 2},
    "sleeper_agent": {
        "name": "sleeper_agent",
        **SURROGATE,
        "size": 3,
        "craft_steps": 2,
        "craft_retrainings": 1,
    },
    "bpp": {"name": "bpp"},
    "adaptive_patch": {"name": "adaptive_patch"},
    "ctrl": {"name": "ctrl"},
    "k_way": {"name": "k_way", "triggers": [{"name": "blend"}, {"name": "badnets"}]},
    "multi_target": {
        "name": "multi_target",
        "triggers": [{"name": "refool"}, {"name": "bpp", "target_class": 1}],
    },
    "low_frequency": {"name": "low_frequency"},
    "low_frequency_search": {
        "name": "low_frequency",
        "preset": "authors",
        **SURROGATE,
        "search_images": 4,
        "search_passes": 1,
    },
}
ABL = {"isolation_epochs": 2, "ranking_window": 2, "finetune_epochs": 1, "unlearning_epochs": 2}
# These flag something however little there is to find, so that what follows is seen too.
EAGER: dict[str, Spec] = {
    "anp": {"steps": 8},
    "activation_clustering": {"components": 2, "max_size": 0.5, "min_silhouette": 0.0},
    "neural_cleanse": {"anomaly_threshold": 0.01, "success": 0.01},
}
DEFENSES: list[Spec] = [
    {"name": "abl", **ABL},
    {"name": "abl", "arm": "abl_paper", "preset": "paper", **ABL},
    {"name": "abl", "arm": "abl_authors", "preset": "authors", **ABL},
    *({"name": name, **fields, **EAGER.get(name, {})} for name, fields in SHORT.items()),
]


def spec(attack: Spec, *defenses: Spec) -> Spec:
    return {
        "dataset": {"name": "digits", "train_size": 200, "test_size": 60},
        "model": {"name": "small_cnn", "width": 8},
        "attack": attack,
        "defenses": list(defenses),
        "training": {"epochs": 1, "batch_size": 50, "augmentation": {"flip": True, "cutout": 2}},
    }


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The other device, chosen by every experiment. Figures are not drawn, but must be given no tensors."""
    torch.set_num_threads(1)

    def drawn(*data: Any) -> bytes:
        assert not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(data))
        return b""

    def elsewhere(*asked: Any) -> Compute:
        return replace(choose_compute(*asked), device=there)

    for name in figures.__all__:
        monkeypatch.setattr(figures, name, drawn)
    monkeypatch.setattr("worker.lab.experiment.choose_compute", elsewhere)
    with other_device() as there:
        yield there


def twice(whole: Spec) -> MemoryRecorder:
    """Run fresh, when what a stage hands on is on the device, and from the cache, when it is on the CPU."""
    store = MemoryStore()
    first = experiment(whole, store=store)
    assert not first.failures
    store.computed.clear()
    again = experiment(whole, store=store)
    assert store.computed == []
    assert again.results == first.results
    return first


def in_pieces(whole: Spec, store: MemoryStore) -> list[str]:
    """Run, stopped at the first checkpoint of every stage that makes one, until it is done; returns these stages."""
    stopped: list[str] = []

    def stop() -> None:
        if new := [key for key in store.checkpoints if key not in stopped]:
            stopped.extend(new)
            raise CanceledError("stopped by the test")

    resumed = 0
    while True:
        recorder = MemoryRecorder(stop)
        try:
            experiment(whole, recorder, store)
        except CanceledError:
            pass
        else:
            break
        finally:
            resumed += sum("resumed from a checkpoint" in line for line in recorder.lines)
    assert not recorder.failures
    assert resumed >= len(stopped)
    return stopped


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    here, generator = torch.arange(4.0), torch.Generator().manual_seed(0)
    with other_device() as device:
        there = here.to(device)
        mask = there > 1
        assert there[mask.cpu()].tolist() == there[mask].tolist() == [2, 3]
        assert (there + torch.tensor(1.0)).device == device
        assert here.copy_(there).device.type == "cpu"
        same = torch.Generator(device).manual_seed(0)
        assert torch.randperm(4, device=device, generator=same).device == device
        for mixture in (
            lambda: here[mask],
            lambda: here.add_(there.sum()),
            lambda: there + here,
            lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
            lambda: torch.randperm(4, device=device, generator=generator),
            lambda: there.clone().uniform_(generator=generator),
        ):
            with pytest.raises(MixedDevicesError):
                mixture()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str) -> None:
    whole = ExperimentSpec.model_validate(spec(ATTACKS[name]))
    files = twice(whole.model_dump(mode="json")).files
    trigger = files.get("seed-0/trigger.safetensors")
    one_image = whole.attack.name in ("poison_frogs", "witches_brew")
    if trigger and not one_image:  # trained on the device, and shown on the CPU
        models = {"undefended": files["seed-0/undefended/model.safetensors"]}
        here = {"data_dir": DIGITS_ONLY, "index": 0, "image": None, "triggered": True, "seed": 0}
        assert predict(whole, models, **here, trigger_state=trigger)["triggered"]


@pytest.mark.usefixtures("device")
def test_defenses() -> None:
    done = twice(spec(ATTACKS["badnets"], *DEFENSES))
    assert ("neural_cleanse", 0, "clean_accuracy") in done.points


@pytest.mark.usefixtures("device")
def test_abl_without_a_majority_class_and_with_costly_unlearning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abl, "majority_class", lambda labels: None)
    harmful = {"finetune_epochs": 8, "unlearning_learning_rate": 1.0, "holdout_ratio": 0.1}
    done = twice(spec(ATTACKS["all_to_all"], {"name": "abl", **ABL, **harmful}))
    assert any("below the accuracy floor" in warning for warning in done.warnings)


@pytest.mark.usefixtures("device")
def test_every_stage_of_abl_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are divided and found to be poisoned, and a final model is trained and asked about the poison."""
    monkeypatch.setattr(signs, "BIMODAL", 0.0)
    monkeypatch.setattr(signs, "MIN_MEMBERS", 2)
    monkeypatch.setattr(removal.Removal, "is_unexplained", True)
    monkeypatch.setattr(abl_plus, "MISSED", -1.0)
    done = twice(spec(ATTACKS["badnets"], {"name": "abl_plus"}))
    assert any("it may still have the backdoor" in warning for warning in done.warnings)


# The emulated device is slow: half a minute each, for what resumes elsewhere as well (defenses/test_stages.py).
@pytest.mark.long
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["input_aware", "hidden_trigger"])
def test_an_attack_goes_on_where_it_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.lab.attacks.hidden_trigger.BATCH", 8)
    longer = {field: 2 for field in ATTACKS[name] if field.endswith("_epochs")}
    assert len(in_pieces(spec(ATTACKS[name] | longer), MemoryStore())) == 2


@pytest.mark.long
@pytest.mark.usefixtures("device")
def test_a_defense_goes_on_where_it_stopped() -> None:
    store = MemoryStore()
    experiment(spec(ATTACKS["badnets"]), store=store)
    for name in ("abl", "ft_sam", "anp", "i_bau", "neural_cleanse", "nab"):
        defense = next(d for d in DEFENSES if d["name"] == name)
        assert in_pieces(spec(ATTACKS["badnets"], defense), store)


@pytest.mark.usefixtures("device")
def test_a_network_that_goes_astray_is_kept_as_it_was() -> None:
    astray = {"epochs": 40, "batch_size": 50, "learning_rate": 10.0, "momentum": 0.99, "weight_decay": 1.0}
    with pytest.raises(NonFiniteLossError):
        experiment(spec(ATTACKS["badnets"]) | {"training": astray}, done := MemoryRecorder())
    assert load(done.files["seed-0/undefended/last-finite.safetensors"])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["fine_tuning", "nab"])
def test_a_model_from_a_file_is_a_victim(name: str, tmp_path: Path) -> None:
    """Also one that stamps its images, as nab leaves it."""
    defense = next(d for d in DEFENSES if d["name"] == name)
    file = tmp_path / "model.safetensors"
    file.write_bytes(experiment(spec(ATTACKS["badnets"], defense)).files[f"seed-0/{name}/model.safetensors"])
    again = [] if name == "nab" else [defense]
    whole = ExperimentSpec.model_validate(spec(ATTACKS["badnets"], *again))
    recorder = MemoryRecorder()
    run_experiment(whole, recorder, MemoryStore(), data_dir=DIGITS_ONLY, device="cpu", victim=file)
    assert not recorder.failures
