"""Small experiments on real data (scikit-learn's digits) that use every stage."""

from typing import Any


def spec(*, seed: int = 0, epochs: int = 3, images: int = 200, **fields: Any) -> dict[str, Any]:
    """Clean, undefended and ABL arms. Stages of equal content are shared, so a test that must compute something needs
    a ``seed`` that no other test uses."""
    abl = {
        "name": "abl",
        "isolation_epochs": epochs,
        "ranking_window": 1,
        "finetune_epochs": epochs,
        "unlearning_epochs": epochs,
        "max_accuracy_drop": 1.0,
    }
    return {
        "dataset": {"name": "digits", "train_size": images, "test_size": 60},
        "model": {"name": "small_cnn"},
        "attack": {"name": "badnets", "poisoning_rate": 0.1},
        "defenses": [abl],
        "training": {"epochs": epochs, "batch_size": 32},
        "reference": True,
        "seeds": [seed],
        **fields,
    }


def numbers(results: Any) -> dict[tuple[str, int, str], float | None]:
    """Every number of a results document except times: (arm, seed, metric) -> value."""
    return {
        (arm["arm"], row["seed"], metric): value
        for arm in results["arms"]
        for row in arm["seeds"]
        for metric, value in row.items()
        if metric not in ("seed", "seconds", "warnings", "error")
    }
