"""A spec that takes seconds on a laptop and uses every stage and kind of artifact; its numbers mean nothing."""

from typing import Any

QUICK: dict[str, Any] = {
    "name": "quick",
    "dataset": {"name": "digits", "train_size": 200, "test_size": 100},
    "model": {"name": "small_cnn", "width": 4},
    "attack": {"name": "badnets", "size": 2},
    "defenses": [
        {
            "name": "abl",
            "isolation_epochs": 2,
            "ranking_window": 1,
            "finetune_epochs": 1,
            "unlearning_epochs": 1,
            "isolation_ratio": 0.05,
        }
    ],
    "training": {"epochs": 2, "batch_size": 50},
    "seeds": [0, 1],
    "tags": {"study": "quick"},
}
