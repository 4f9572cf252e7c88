"""Whole experiments: arms, files, store, resuming, errors."""

import csv
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load

from app.specs.experiment import ExperimentSpec
from tests.lab.memory import MemoryRecorder, MemoryStore, experiment
from tests.quick import QUICK
from worker.lab.contracts import CanceledError, NonFiniteLossError, SpecError

pytestmark = pytest.mark.figures

SMALL: dict[str, Any] = {**QUICK, "seeds": [3], "reference": True}


@pytest.fixture(scope="module")
def done() -> MemoryRecorder:
    return experiment(SMALL)


def test_every_arm_has_its_numbers(done: MemoryRecorder) -> None:
    assert list(done.results) == [("clean", 3), ("undefended", 3), ("abl", 3)]
    for values in done.results.values():
        assert {
            "clean_accuracy",
            "attack_success_rate",
            "robust_accuracy",
            "train_accuracy",
            "seconds",
        } <= set(values)
        assert all(
            0 <= v <= 1 for k, v in values.items() if v is not None and k.endswith(("accuracy", "rate"))
        )
    assert "isolation_precision" in done.results["abl", 3]
    assert "isolation_precision" not in done.results["clean", 3]


def test_isolation_quality_is_recorded_every_epoch(done: MemoryRecorder) -> None:
    for name in ("isolation_precision", "isolation_recall", "isolation_auroc"):
        assert sorted(done.points["abl", 3, name]) == [1, 2]


def test_steps_continue_from_stage_to_stage(done: MemoryRecorder) -> None:
    assert sorted(done.points["abl", 3, "train_loss"]) == [
        1,
        2,
        3,
        4,
    ]  # 2 isolation, 1 finetune, 1 unlearning


def test_progress_only_grows_and_ends_at_one(done: MemoryRecorder) -> None:
    assert done.fractions == sorted(done.fractions)
    assert done.fractions[-1] == 1.0


def test_files_of_a_run(done: MemoryRecorder) -> None:
    assert {
        "results.png",
        "results.json",
        "seed-3/samples.png",
        "seed-3/poison.png",
        "seed-3/curves.png",
        "seed-3/predictions.png",
        "seed-3/poisoned_indices.json",
        "seed-3/abl/isolation.csv",
        "seed-3/abl/isolation_images.png",
        "seed-3/abl/isolation_losses.png",
        "seed-3/clean/model.safetensors",
        "seed-3/undefended/model.safetensors",
        "seed-3/abl/model.safetensors",
    } <= set(done.files)
    indices = json.loads(done.files["seed-3/poisoned_indices.json"])["indices"]
    assert len(indices) == 20  # a tenth of 200
    rows = list(csv.DictReader(done.files["seed-3/abl/isolation.csv"].decode().splitlines()))
    assert len(rows) == 200
    assert sorted(int(row["index"]) for row in rows if row["is_poisoned"] == "1") == indices


def test_the_most_suspicious_images_are_on_a_sheet_in_the_order_of_the_ranking(done: MemoryRecorder) -> None:
    rows = list(csv.DictReader(done.files["seed-3/abl/isolation.csv"].decode().splitlines()))
    name = "seed-3/abl/isolation_images.png"
    details = done.details[name]
    assert details["indices"] == [int(row["index"]) for row in rows]
    pixels = np.asarray(Image.open(io.BytesIO(done.files[name])))
    assert pixels.shape == (10 * 8, 20 * 8)  # 200 images of 8 x 8
    for place, row in enumerate(rows):
        y, x = (8 * part for part in divmod(place, details["columns"]))
        corner = pixels[y + 6 : y + 8, x + 6 : x + 8].tolist()
        assert (corner in ([[0, 255], [255, 0]], [[255, 0], [0, 255]])) == (row["is_poisoned"] == "1"), place


def test_checkpoints_are_labeled(done: MemoryRecorder, tmp_path: Any) -> None:
    for arm, backdoored in (("clean", "false"), ("undefended", "true")):
        path = tmp_path / f"{arm}.safetensors"
        path.write_bytes(done.files[f"seed-3/{arm}/model.safetensors"])
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        assert header["backdoored"] == backdoored
        assert ExperimentSpec.model_validate_json(header["spec"]) == ExperimentSpec.model_validate(SMALL)
    assert done.details["seed-3/undefended/model.safetensors"]["backdoored"] is True


def test_the_same_spec_gives_the_same_bits(done: MemoryRecorder) -> None:
    again = experiment(SMALL)
    assert _numbers(again) == _numbers(done)
    for name in (n for n in done.files if n.endswith((".csv", "indices.json", ".png"))):
        assert again.files[name] == done.files[name], name
    assert _weights(again) == _weights(done)


def test_another_seed_gives_other_numbers(done: MemoryRecorder) -> None:
    other = experiment({**SMALL, "seeds": [4]})
    assert other.results["undefended", 4] != done.results["undefended", 3]
    assert other.files["seed-4/poisoned_indices.json"] != done.files["seed-3/poisoned_indices.json"]


def test_equal_stages_are_computed_once() -> None:
    store = MemoryStore()
    first = experiment(SMALL, store=store)
    assert store.computed == ["poisoned_set", "victim", "victim", "isolation", "finetune", "unlearning"]
    store.computed.clear()
    second = experiment(SMALL, store=store)
    assert store.computed == []
    assert _numbers(second) == _numbers(first)
    assert second.points == first.points  # a cached stage reports its time series again
    changed = {**SMALL, "defenses": [{**SMALL["defenses"][0], "unlearning_learning_rate": 0.01}]}
    experiment(changed, store=store)
    assert store.computed == ["unlearning"]  # an isolation is shared by several ways of unlearning


@pytest.mark.parametrize("stop_after", [7, 13, 20, 30])
def test_a_killed_run_resumes_to_the_same_bits(done: MemoryRecorder, stop_after: int) -> None:
    """Stopped at some batch of some stage, and started again with its checkpoint."""
    store, batches = MemoryStore(), 0

    def stop() -> None:
        nonlocal batches
        batches += 1
        if batches == stop_after:
            raise CanceledError("stopped by the test")

    with pytest.raises(CanceledError):
        experiment(SMALL, MemoryRecorder(stop), store)
    resumed = experiment(SMALL, store=store)
    assert _numbers(resumed) == _numbers(done)
    assert _weights(resumed) == _weights(done)
    assert resumed.points == done.points


def test_canceling_takes_effect_within_one_batch() -> None:
    seen = 0

    def cancel() -> None:
        nonlocal seen
        seen += 1
        raise CanceledError("now")

    with pytest.raises(CanceledError):
        experiment(SMALL, MemoryRecorder(cancel))
    assert seen == 1


ASTRAY = {"learning_rate": 10.0, "momentum": 0.99, "weight_decay": 1.0}


def test_a_loss_that_is_not_finite_ends_its_arm_only() -> None:
    """A victim with a huge learning rate fails, naming epoch and batch; the other arms finish."""
    done = experiment({**SMALL, "training": {"epochs": 40, "batch_size": 50, "learning_rate": 1e-3}})
    assert not done.failures
    defense = {**SMALL["defenses"][0], "isolation_learning_rate": 1e-3, "finetune_learning_rate": 1e-3}
    done = experiment(
        {**SMALL, "defenses": [defense], "training": {**ASTRAY, "epochs": 40, "batch_size": 50}}
    )
    error = done.failures["undefended", 3]
    assert isinstance(error, NonFiniteLossError)
    assert re.match(r"epoch \d+, (after )?batch \d+: ", str(error))
    assert ("abl", 3) in done.results
    rescued = load(done.files["seed-3/undefended/last-finite.safetensors"])
    assert all(torch.isfinite(tensor).all() for tensor in rescued.values())


def test_a_run_without_any_result_raises() -> None:
    spec = {"dataset": {"name": "digits", "train_size": 200}, "training": {**ASTRAY, "epochs": 40}}
    recorder = MemoryRecorder()
    with pytest.raises(NonFiniteLossError):
        experiment(spec, recorder)
    assert ("undefended", 0) in recorder.failures


def test_a_spec_that_does_not_fit_its_data_is_refused_before_any_work() -> None:
    recorder = MemoryRecorder()
    with pytest.raises(SpecError, match=r"attack\.target_class: 12 .* 0 to 9"):
        experiment({**SMALL, "attack": {"name": "badnets", "target_class": 12}}, recorder)
    assert recorder.lines == []


def test_a_defense_on_clean_data_is_measured_against_the_clean_arm() -> None:
    done = experiment({**SMALL, "attack": {"name": "none"}})
    assert list(done.results) == [("clean", 3), ("abl", 3)]
    assert done.results["abl", 3]["attack_success_rate"] is None


def _weights(done: MemoryRecorder) -> dict[str, dict[str, bytes]]:
    """Every model's tensors as bytes. (The order of a file's metadata is not fixed, so files are not compared.)"""
    return {
        name: {key: tensor.numpy().tobytes() for key, tensor in load(data).items()}
        for name, data in done.files.items()
        if name.endswith("model.safetensors")
    }


def _numbers(done: MemoryRecorder) -> dict[Any, Any]:
    return {key: {k: v for k, v in values.items() if k != "seconds"} for key, values in done.results.items()}


def test_a_training_that_diverged_but_stayed_finite_has_a_warning() -> None:
    training = {"epochs": 2, "batch_size": 50, "learning_rate": 10, "momentum": 0.99}
    spec = {**QUICK, "defenses": [], "seeds": [0], "reference": True, "training": training}
    done = experiment(spec)
    assert all(values["clean_accuracy"] < 0.2 for values in done.results.values())
    assert len([message for message in done.warnings if "which is not above chance (10" in message]) == 2, (
        done.warnings
    )


def test_a_model_that_learned_has_none() -> None:
    training = {"epochs": 4, "batch_size": 20}
    done = experiment({**QUICK, "defenses": [], "seeds": [0], "training": training})
    assert done.results["undefended", 0]["clean_accuracy"] > 0.2
    assert not any("chance" in message for message in done.warnings)
