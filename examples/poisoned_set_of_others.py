"""Defends a dataset that came poisoned: upload, the attack `given`, results.

    python examples/poisoned_set_of_others.py http://127.0.0.1:8000

The set is made here from scikit-learn's digits, in place of one that you found: 60 training images carry a white
square and the label 7. The arrays `poison_indices`, `x_test_triggered` and `y_test_triggered` are optional; without
them the scores that need them are null.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from bdlab import Client

TARGET = 7


def add_square(images: np.ndarray) -> np.ndarray:
    stamped = images.copy()
    stamped[:, -3:, -3:] = 255
    return stamped


def make_poisoned_set(path: Path) -> None:
    digits = load_digits()
    images, labels = (digits.images * (255 / 16)).round().astype(np.uint8), digits.target.astype(np.int64)
    x_train, y_train, x_test, y_test = images[:600], labels[:600].copy(), images[1400:], labels[1400:]
    poisoned = np.flatnonzero(y_train != TARGET)[:60]
    x_train[poisoned], y_train[poisoned] = add_square(x_train[poisoned]), TARGET
    np.savez_compressed(
        path,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        poison_indices=poisoned,
        x_test_triggered=add_square(x_test),
        y_test_triggered=y_test,
    )


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Client(url) as client:
        path = Path(folder) / "found.npz"
        make_poisoned_set(path)
        dataset = client.datasets.wait(client.datasets.upload(path)["id"])
        if dataset["status"] != "ready":
            sys.exit(dataset["reason"])
        experiment = client.submit(
            {
                "name": "a poisoned set of others",
                "dataset": dataset["dataset"],
                "attack": {"name": "given"},
                "defenses": [{"name": "spectral_signatures"}, {"name": "fine_tuning"}],
                "training": {"epochs": 10, "batch_size": 32},
            }
        )
        client.wait(experiment["id"])
        for arm in client.results(experiment["id"])["arms"]:
            values = {name: value and round(value["mean"], 3) for name, value in arm["aggregate"].items()}
            shown = ("clean_accuracy", "attack_success_rate", "isolation_precision")
            print(arm["arm"], {name: values[name] for name in shown if name in values})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
