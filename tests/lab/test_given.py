"""Datasets that came poisoned: their import, the attack `given`, and scores that are null without a truth."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from app.data import local_datasets
from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from tests.lab.attacks.helpers import digits
from tests.lab.memory import MemoryRecorder, MemoryStore
from tests.lab.test_importing import make_folder, make_zip, png, refused, run
from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.datasets import draw_subset, load_whole_dataset
from worker.lab.defenses.clean_set import draw_clean_set
from worker.lab.experiment import run_experiment
from worker.lab.given import make_given_test_set, set_clean_pool_aside

TRAIN, TEST, POISONED = 240, 120, 36
TARGET = 3
ABL = {
    "name": "abl",
    "isolation_epochs": 2,
    "ranking_window": 1,
    "finetune_epochs": 1,
    "unlearning_epochs": 1,
    "isolation_ratio": 0.1,
}


def stamp(images: np.ndarray) -> np.ndarray:
    stamped = images.copy()
    stamped[..., -3:, -3:] = 255
    return stamped


def arrays(*without: str, **changes: Any) -> dict[str, np.ndarray]:
    """Digits of which the first 36 of other classes carry a white square and the label 3."""
    data = digits()
    x, y = data.train.images[:TRAIN, 0].numpy(), data.train.labels[:TRAIN].numpy().copy()
    rows = np.flatnonzero(y != TARGET)[:POISONED]
    clean_labels, is_poisoned = y.copy(), np.zeros(TRAIN, bool)
    is_poisoned[rows], y[rows] = True, TARGET
    x = np.where(is_poisoned[:, None, None], stamp(x), x)
    x_test, y_test = data.test.images[:TEST, 0].numpy(), data.test.labels[:TEST].numpy()
    made = {
        "x_train": x,
        "y_train": y,
        "x_test": x_test,
        "y_test": y_test,
        "is_poisoned": is_poisoned,
        "clean_labels": clean_labels,
        "x_test_triggered": stamp(x_test),
        "y_test_triggered": y_test,
        **changes,
    }
    return {name: array for name, array in made.items() if name not in without}


def npz(folder: Path, *without: str, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "given.npz", **arrays(*without, **changes))
    return folder / "given.npz"


def members() -> dict[str, bytes]:
    """The same as a folder of pictures, with the list of the poisoned ones."""
    made, listed = {}, []
    data = arrays()
    for part, x, y in (("train", "x_train", "y_train"), ("test", "x_test", "y_test")):
        for i, (image, label) in enumerate(zip(data[x], data[y], strict=True)):
            made[f"{part}/{label}/{i:04}.png"] = png(image)
            if part == "train" and data["is_poisoned"][i]:
                listed.append(f"train/{label}/{i:04}.png")
    for i, (image, label) in enumerate(zip(data["x_test_triggered"], data["y_test_triggered"], strict=True)):
        made[f"test_triggered/{label}/{i:04}.png"] = png(image)
    made["poisoned.txt"] = "\n".join([*listed, ""]).encode()
    return made


@pytest.mark.parametrize("form", ["npz", "indices", "folder", "zip", "wrapped zip", "parquet"])
def test_every_layout_keeps_what_is_known(tmp_path: Path, form: str) -> None:
    if form == "npz":
        source = npz(tmp_path)
    elif form == "indices":
        listed = np.flatnonzero(arrays()["is_poisoned"])
        source = npz(tmp_path, "is_poisoned", poison_indices=listed)
    elif form == "folder":
        source = make_folder(tmp_path / "set", members())
    elif form == "parquet":
        source = parquet_folder(tmp_path / "set")
    else:
        prefix = "found/" if "wrapped" in form else ""
        source = make_zip(tmp_path / "set.zip", {prefix + n: data for n, data in members().items()})
    stored = run(source, tmp_path / "home", key="found")
    assert (stored.facts.poisoned, stored.facts.triggered) == (POISONED, TEST)
    assert not stored.notes
    tensors, facts, version = files.read(stored.path)
    assert facts == stored.facts
    expected = arrays()
    # Files of a folder are in the order of their names within each class.
    order = (
        np.argsort(expected["y_train"], kind="stable")
        if form in ("folder", "zip", "wrapped zip")
        else slice(None)
    )
    np.testing.assert_array_equal(tensors["is_poisoned"], expected["is_poisoned"][order])
    np.testing.assert_array_equal(tensors["x_train"][:, 0], expected["x_train"][order])
    assert (tensors["x_test_triggered"][:, 0, -3:, -3:] == 255).all()
    assert sorted(tensors["y_test_triggered"]) == sorted(expected["y_test_triggered"])
    assert local_datasets.is_intact(stored.path, version)
    # What is known is part of the content.
    bare = run(
        npz(tmp_path / "bare", "is_poisoned", "clean_labels", "x_test_triggered", "y_test_triggered"),
        tmp_path,
    )
    assert bare.sha256 != version
    assert "poisoned" not in bare.facts.model_dump()


def parquet_folder(folder: Path) -> Path:
    data = arrays()
    parts: dict[str, dict[str, Any]] = {
        "train": {"is_poisoned": data["is_poisoned"], "clean_labels": data["clean_labels"]},
        "test": {},
        "test_triggered": {},
    }
    folder.mkdir()
    for part, more in parts.items():
        x, y = data[f"x_{part}"], data[f"y_{part}"]
        image = [{"bytes": png(pixels), "path": None} for pixels in x]
        pq.write_table(pa.table({"image": image, "label": y, **more}), folder / f"{part}.parquet")
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"poison_indices": np.array([1])}, "poison_indices and is_poisoned say the same"),
        ({"is_poisoned": np.zeros(5, bool)}, "is_poisoned: 5 values for the 240 training images"),
        (
            {"is_poisoned": np.full(TRAIN, 2)},
            "is_poisoned: int64 of shape [240]; allowed are [N] of true and false",
        ),
        (
            {"is_poisoned": None, "poison_indices": np.array([240])},
            "poison_indices: row 240; allowed are 0 to 239",
        ),
        (
            {"is_poisoned": None, "poison_indices": np.array([7, 7])},
            "poison_indices: some rows are listed twice",
        ),
        ({"is_poisoned": None, "poison_indices": np.array([0.5])}, "poison_indices: float64 of shape [1]"),
        ({"clean_labels": np.full(TRAIN, 10)}, "clean_labels: label 10 is out of range"),
        ({"y_test_triggered": None}, "y_test_triggered is missing"),
        ({"y_test_triggered": np.zeros(3, int)}, "y_test_triggered: 3 labels for the 120 images"),
        ({"y_test_target": np.full(TEST, 11)}, "y_test_target: label 11 is out of range"),
        ({"x_test_triggered": np.zeros((TEST, 9, 9), np.uint8)}, "x_test_triggered: images of 1x9x9"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    without = [name for name, value in changes.items() if value is None]
    source = npz(tmp_path, *without, **{name: value for name, value in changes.items() if value is not None})
    assert said in refused(source, tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "poisoned.txt",
            "train/3/nothing.png",
            "poisoned.txt line 1: 'train/3/nothing.png' is not a training image",
        ),
        ("poisoned.txt", "test/3/0000.png", "is not a training image; allowed are paths such as train/0/"),
        ("train/poisoned.txt", "", "train/poisoned.txt: poisoned.txt belongs beside the folders"),
    ],
)
def test_a_list_that_names_no_training_image_is_refused(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    source = make_folder(tmp_path / "set", {**members(), name: text.encode()})
    assert said in refused(source, tmp_path / "home")


def test_a_poisoned_set_does_not_get_the_name_of_a_clean_one(tmp_path: Path) -> None:
    assert "this is not mnist: it came poisoned" in refused(
        npz(tmp_path), tmp_path / "home", built_in="mnist"
    )


def test_a_changed_flag_is_damage(tmp_path: Path) -> None:
    stored = run(npz(tmp_path), tmp_path / "home", key="found")
    with safe_open(stored.path, framework="np") as file:
        flags = file.get_tensor("is_poisoned").tobytes()
    content = stored.path.read_bytes()
    assert content.count(flags) == 1
    stored.path.write_bytes(content.replace(flags, bytes(TRAIN - 1) + b"\1"))
    assert not local_datasets.is_intact(stored.path)
    with pytest.raises(LabError, match="damaged"):
        files.read(stored.path)


def test_only_images_that_are_not_poisoned_become_test_images(tmp_path: Path) -> None:
    source = npz(tmp_path, "x_test", "y_test")
    stored = run(source, tmp_path / "home", key="found", test_fraction=0.2)
    tensors, facts, _ = files.read(stored.path)
    assert facts.poisoned == POISONED
    corner = tensors["x_test"][:, 0, -3:, -3:]
    assert not (corner == 255).all(axis=(1, 2)).any()
    stamped = (tensors["x_train"][:, 0, -3:, -3:] == 255).all(axis=(1, 2))
    np.testing.assert_array_equal(tensors["is_poisoned"], stamped)


def spec_of(**more: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "dataset": {"name": "imported", "key": "found"},
            "model": {"name": "small_cnn", "width": 8},
            "attack": {"name": "given"},
            "training": {"epochs": 2, "batch_size": 40},
            **more,
        }
    )


def run_given(
    home: Path, *without: str, changes: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, MemoryRecorder]:
    run(npz(home, *without, **(changes or {})), home, key="found", replace=True)
    recorder = MemoryRecorder()
    results = run_experiment(spec_of(**more), recorder, MemoryStore(), data_dir=home, device="cpu")
    return {arm["arm"]: arm["aggregate"] for arm in results["arms"]}, recorder


def test_a_given_set_is_trained_on_as_it_is_and_scored_by_what_it_says(tmp_path: Path) -> None:
    tuning = {"name": "fine_tuning", "steps": 4, "clean_ratio": 0.1}
    training = {"epochs": 12, "batch_size": 40}
    arms, recorder = run_given(
        tmp_path,
        defenses=[ABL, {"name": "spectral_signatures"}, tuning, {"name": "scale_up", "clean_ratio": 0.1}],
        training=training,
    )
    assert arms["undefended"]["attack_success_rate"]["mean"] > 0.5, (
        "the trigger was learned from the given images"
    )
    for name in ("abl", "spectral_signatures"):
        assert 0 <= arms[name]["isolation_precision"]["mean"] <= 1
        assert arms[name]["isolation_auroc"] is not None
    assert arms["abl"]["true_positives"]["mean"] + arms["abl"]["false_negatives"]["mean"] == POISONED
    assert arms["fine_tuning"]["defense_effectiveness"] is not None
    assert 0 <= arms["scale_up"]["input_auroc"]["mean"] <= 1
    assert b"is_poisoned" in recorder.files["seed-0/abl/isolation.csv"].splitlines()[0]
    assert "seed-0/given.png" in recorder.files
    assert "seed-0/samples.png" not in recorder.files, "nothing says what the images were before"
    assert not [line for line in recorder.warnings if "not measured" in line]


def test_without_a_truth_scores_are_null_and_everything_else_works(tmp_path: Path) -> None:
    without = ("is_poisoned", "clean_labels", "x_test_triggered", "y_test_triggered")
    scale_up = {"name": "scale_up", "clean_ratio": 0.1}
    arms, recorder = run_given(tmp_path, *without, defenses=[ABL, {"name": "spectral_signatures"}, scale_up])
    assert set(arms) == {"undefended", "abl", "spectral_signatures", "scale_up"}
    inputs = arms.pop("scale_up")
    assert inputs["input_auroc"] is None
    assert 0 <= inputs["input_false_positive_rate"]["mean"] <= 1
    for arm, values in arms.items():
        assert values["clean_accuracy"]["mean"] > 0
        assert values["attack_success_rate"] is None
        if arm != "undefended":
            assert values["isolation_precision"] is None
            assert values["isolation_recall"] is None
            assert "true_positives" not in values
    assert b"is_poisoned" not in recorder.files["seed-0/abl/isolation.csv"].splitlines()[0]
    assert {"seed-0/abl/isolation_losses.png", "seed-0/curves.png", "results.png"} <= set(recorder.files)
    assert not {"seed-0/poisoned_indices.json", "seed-0/given.png"} & set(recorder.files)
    assert recorder.details["seed-0/abl/model.safetensors"]["backdoored"]
    assert "attack success is not measured: there are no test images with the trigger" in recorder.warnings


def test_the_target_is_the_user_s_or_the_images_or_the_one_label_of_the_marked_ones(tmp_path: Path) -> None:
    unmarked = ("is_poisoned", "clean_labels")
    arms, recorder = run_given(tmp_path, *unmarked)
    assert arms["undefended"]["attack_success_rate"] is None
    assert arms["undefended"]["robust_accuracy"] is not None
    assert any("set attack.target_class" in line for line in recorder.warnings)
    arms, _ = run_given(tmp_path, *unmarked, attack={"name": "given", "target_class": TARGET})
    assert arms["undefended"]["attack_success_rate"] is not None
    targets = (arrays()["y_test_triggered"] + 1) % 10
    run(npz(tmp_path, *unmarked, y_test_target=targets), tmp_path, key="found", replace=True)
    whole = load_whole_dataset(spec_of().dataset, tmp_path)
    test = make_given_test_set(spec_of().attack, whole, whole.test)
    assert test.targets is not None
    assert test.targets.tolist() == targets.tolist()
    none = make_given_test_set(
        spec_of(attack={"name": "given", "triggered_test": "none"}).attack, whole, whole.test
    )
    assert none.triggered is None


def test_clean_sets_come_from_test_images_that_are_not_measured_on(tmp_path: Path) -> None:
    run(npz(tmp_path), tmp_path, key="found")
    spec = spec_of(dataset={"name": "imported", "key": "found", "train_size": 100})
    data = draw_subset(load_whole_dataset(spec.dataset, tmp_path), spec.dataset, 5)
    measured, pool = set_clean_pool_aside(spec.attack, data, 5)
    assert (len(measured), len(pool)) == (90, 30)
    clean = draw_clean_set(pool, 10, 20, 0.2, 5)
    seen = {image.numpy().tobytes() for image in clean.images}
    assert seen <= {image.numpy().tobytes() for image in pool.images}
    # Truth follows the rows of the subset.
    assert data.truth.is_poisoned is not None
    stamped = (data.train.images[:, 0, -3:, -3:] == 255).flatten(1).all(1)
    assert torch.equal(data.truth.is_poisoned, stamped)


def test_what_cannot_be_is_refused_at_submission(tmp_path: Path) -> None:
    full = run(npz(tmp_path), tmp_path, key="found").facts
    bare = full.model_copy(update={"poisoned": None, "triggered": 0})

    def fields(facts: Any, **more: Any) -> list[str]:
        return [problem.field for problem in find_problems(spec_of(**more), facts)]

    assert fields(full) == fields(bare) == []
    assert fields(full, attack={"name": "given", "triggered_test": "dataset"}) == []
    assert fields(bare, attack={"name": "given", "triggered_test": "dataset"}) == ["attack.triggered_test"]
    assert fields(full, attack={"name": "given", "target_class": 10}) == ["attack.target_class"]
    assert fields(full, attack={"name": "given", "clean_share": 0.9}) == []
    assert fields(full, reference=True) == ["reference"]
    assert fields(full, dataset={"name": "digits"}) == ["attack.name"]
    assert fields(full, defenses=[{"name": "nad", "clean_ratio": 0.2}]) == ["defenses.0.clean_ratio"]
    assert (
        fields(full, attack={"name": "badnets"}) == fields(full, attack={"name": "none"}) == ["attack.name"]
    )
    assert fields(bare, attack={"name": "badnets"}) == []
    few = {"name": "imported", "key": "found", "test_size": 40}
    shared = {"name": "given", "clean_share": 0.8}
    assert fields(full, dataset=few, attack=shared) == ["attack.clean_share"]


def test_a_picture_with_the_trigger_of_another_class_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    source = make_folder(tmp_path / "set", {**members(), "test_triggered/cat/1.png": stream.getvalue()})
    assert "cat is not a class of the training images" in refused(source, tmp_path / "home")
