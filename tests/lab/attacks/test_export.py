"""Export of a poisoned training set, and its import."""

import numpy as np
import pytest

from tests.lab.attacks.helpers import run_in
from tests.lab.memory import experiment
from worker.lab.data import files
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
    again = run_in(
        tmp_path / "data",
        {"name": "given"},
        dataset={"name": "imported", "key": "poisoned-digits", "train_size": 200},
    )
    assert again["arms"][0]["arm"] == "undefended"


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
