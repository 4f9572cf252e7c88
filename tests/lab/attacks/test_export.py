"""Export of a poisoned training set, and its import."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from app.specs.dataset import Digits
from tests.lab.attacks.helpers import run_in
from tests.lab.memory import experiment
from worker.lab.data import files
from worker.lab.data.datasets import draw_subset, load_whole_dataset
from worker.lab.data.importing import import_dataset


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_an_exported_set_is_imported_unchanged(tmp_path, form):
    run_in(tmp_path, {"name": "badnets", "export": True})
    out = tmp_path / "out/seed-0"
    pair = {
        "npz": ("poisoned_train.npz", None),
        "parquet": ("poisoned_train.parquet", "poisoned_test.parquet"),
    }
    if form == "parquet":
        pytest.importorskip("pyarrow")
    train, test = pair[form]
    stored = import_dataset(
        out / train,
        tmp_path / "data",
        key="poisoned-digits",
        built_in=None,
        test=None if test is None else out / test,
        test_fraction=None,
        split_seed=0,
        size=None,
        replace=False,
    )
    tensors, facts, _ = files.read(stored.path)
    written = np.load(out / "poisoned_train.npz")
    assert (tensors["x_train"][:, 0] == written["x_train"]).all()
    assert (tensors["y_train"] == written["y_train"]).all()
    assert (tensors["x_test"][:, 0] == written["x_test"]).all()
    assert (tensors["y_test"] == written["y_test"]).all()
    assert facts.class_names == tuple("0123456789")
    assert written["is_poisoned"].sum() == 30
    # It says which images are poisoned, and can be defended as it is.
    assert facts.poisoned == 30
    assert facts.triggered == (90 if form == "npz" else 0)
    again = run_in(
        tmp_path / "data",
        {"name": "given"},
        dataset={"name": "imported", "key": "poisoned-digits", "train_size": 200},
    )
    assert again["arms"][0]["arm"] == "undefended"
    success = again["arms"][0]["aggregate"]["attack_success_rate"]
    assert (success is not None) == (form == "npz")


def test_nothing_is_exported_by_default(tmp_path):
    run_in(tmp_path, {"name": "badnets"})
    assert not list((tmp_path / "out").rglob("poisoned_train.*"))
    assert (tmp_path / "out/seed-0/poisoned_indices.json").is_file()


def test_only_poisoned_training_data_are_labeled():
    done = experiment(
        {
            "dataset": {"name": "digits", "train_size": 300, "test_size": 100},
            "model": {"name": "small_cnn", "width": 8},
            "attack": {"name": "badnets", "export": True},
            "training": {"epochs": 1},
        }
    )
    labeled = {
        name for name, details in done.details.items() if details.get("backdoored") and "poisoned" in name
    }
    assert "seed-0/poisoned_train.npz" in labeled
    assert labeled <= {"seed-0/poisoned_train.npz", "seed-0/poisoned_train.parquet"}
    assert all(
        done.details[f"seed-0/{name}.zip"]["backdoored"] for name in ("backdoor_toolbox", "backdoorbench")
    )


def test_an_exported_set_comes_back_as_a_given_one_with_the_same_attack_success(tmp_path):
    before = run_in(tmp_path, {"name": "badnets", "export": True, "label_mode": "all_to_all"})
    import_dataset(
        tmp_path / "out/seed-0/poisoned_train.npz",
        tmp_path / "data",
        key="again",
        built_in=None,
        test=None,
        test_fraction=None,
        split_seed=0,
        size=None,
        replace=False,
    )
    # Random numbers follow from the attack's name, so the models differ; the images do not.
    after = run_in(
        tmp_path / "data",
        {"name": "given", "clean_share": 0},
        dataset={"name": "imported", "key": "again"},
    )
    tensors, _, _ = files.read(tmp_path / "data/imported/again.safetensors")
    written = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert (tensors["y_test_target"] == (tensors["y_test_triggered"] + 1) % 10).all()
    assert (tensors["x_test_triggered"][:, 0] == written["x_test_triggered"]).all()
    assert {name for name in before["arms"][0]["aggregate"] if "attack" in name} == {
        name for name in after["arms"][0]["aggregate"] if "attack" in name
    }


@pytest.mark.parametrize("attack", ["badnets", "tact"])
def test_the_layout_of_backdoor_toolbox_is_read_as_the_toolbox_does(tmp_path, attack):
    run_in(tmp_path, {"name": attack, "export": True, "poisoning_rate": 0.05})
    written = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    with zipfile.ZipFile(tmp_path / "out/seed-0/backdoor_toolbox.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / f"poisoned_train_set/digits/{attack}_0.050"
    labels = torch.load(folder / "labels", weights_only=True)
    assert labels.dtype == torch.int64
    images = np.stack([np.asarray(Image.open(folder / f"data/{i}.png")) for i in range(len(labels))])
    assert (images == written["x_train"]).all()
    assert (labels.numpy() == written["y_train"]).all()
    rows, cover = (torch.load(folder / f"{n}_indices", weights_only=True) for n in ("poison", "cover"))
    assert rows == np.flatnonzero(written["is_poisoned"]).tolist()
    assert cover == np.flatnonzero(written["is_cross"]).tolist()
    assert bool(cover) == (attack == "tact")
    clean = tmp_path / "clean_set/digits/test_split"
    assert (torch.load(clean / "labels", weights_only=True).numpy() == written["y_test"]).all()
    assert len(list((clean / "data").iterdir())) == 100
    triggered = tmp_path / f"triggered_test_set/digits/{attack}_0.050"
    assert (torch.load(triggered / "labels", weights_only=True) == 0).all()
    true = torch.load(triggered / "true_labels", weights_only=True).numpy()
    assert (true == written["y_test_triggered"]).all()
    assert (np.asarray(Image.open(triggered / "data/0.png")) == written["x_test_triggered"][0]).all()


def test_the_layout_of_backdoorbench_rebuilds_both_sets_from_the_clean_ones(tmp_path):
    run_in(tmp_path, {"name": "wanet", "export": True, "cross_ratio": 1})
    written = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    with zipfile.ZipFile(tmp_path / "out/seed-0/backdoorbench.zip") as archive:
        archive.extractall(tmp_path / "record")
    # attack_result.pt holds NumPy arrays, as BackdoorBench's own, which it loads without weights_only.
    result = torch.load(tmp_path / "record/attack_result.pt", weights_only=False)
    subset = Digits(train_size=300, test_size=100)
    clean = draw_subset(load_whole_dataset(subset, tmp_path), subset, 0)
    for name, images, expected in (
        ("bd_train", clean.train, written["x_train"]),
        ("bd_test", clean.test, written["x_test_triggered"]),
    ):
        state, rebuilt, targets = result[name], [], []
        for index in state["original_index_array"]:
            if state["poison_indicator"][index] == 0:
                rebuilt.append(images.images[index, 0].numpy())
                targets.append(int(images.labels[index]))
            else:
                entry = state["bd_data_container"]["data_dict"][index]
                rebuilt.append(np.asarray(Image.open(tmp_path / "record" / entry["path"])))
                targets.append(entry["other_info"][0])
                assert entry["other_info"][1] == images.labels[index]
        assert (np.stack(rebuilt) == expected).all()
        assert targets == written["y_train" if name == "bd_train" else "y_test_target"].tolist()
    assert result["clean_data"] == "digits"


def test_appended_poisons_have_no_place_in_backdoorbench_s_layout(tmp_path):
    spec = {"name": "hidden_trigger", "export": True, "size": 2, "surrogate_epochs": 1, "craft_steps": 2}
    run_in(tmp_path, spec)
    assert not (tmp_path / "out/seed-0/backdoorbench.zip").exists()
    assert "backdoorbench.zip is left out" in (tmp_path / "out/log.txt").read_text()
