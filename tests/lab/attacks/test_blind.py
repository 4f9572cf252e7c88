"""The blind attack: weights of the losses on hand-computed gradients, and a training that it controls."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.specs.checks import find_problems, find_victim_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab import memory
from tests.lab.attacks.helpers import attack, facts, image, run_in
from tests.lab.defenses.cases import SHORT
from worker.lab.attacks.blind import weigh_shortest
from worker.lab.contracts import CanceledError

QUICK = {"name": "blind", "joint_epochs": 6, "history_epochs": 0.5}


@pytest.mark.parametrize(
    ("first", "second", "weight"),
    [
        ((1, 0), (0, 1), 0.5),
        ((2, 0), (0, 1), 0.2),  # (2 w)^2 + (1 - w)^2 is least at 1/5
        ((1, 0), (2, 0), 0.999),  # the first one itself is the shortest between both
        ((2, 1), (1, 0), 0.001),
        ((1, 0), (-3, 0), 0.75),  # they cancel
    ],
)
def test_the_weights_make_the_shortest_sum(first: Any, second: Any, weight: float) -> None:
    a, b = torch.tensor(first).float(), torch.tensor(second).float()
    assert weigh_shortest(a, b).item() == pytest.approx(weight)


@pytest.mark.parametrize(
    ("normalization", "loss", "divisor"),
    [("none", 0.5, 1), ("l2", 0.5, 5), ("loss", 0.5, 0.5), ("loss+", 0.5, 2.5), ("loss+", 9.0, 10)],
)
def test_gradients_are_normalized_by_length_and_loss(normalization: str, loss: float, divisor: float) -> None:
    made: Any = attack(facts(height=8, width=8), name="blind", normalization=normalization)
    vector = made._normalized(torch.tensor(loss), (torch.tensor([3.0]), torch.tensor([[4.0]])))
    assert torch.allclose(vector, torch.tensor([3.0, 4.0]) / divisor, rtol=1e-4)


def test_the_pattern_is_the_authors_and_transparent_in_between() -> None:
    stamped = attack(facts(height=5, width=4), name="blind", row=0, column=1).trigger({})(
        image([[7, 7, 7, 7]] * 5)
    )
    assert stamped[0, 0].tolist() == [
        [7, 255, 0, 255],
        [7, 7, 255, 7],
        [7, 7, 7, 0],
        [7, 7, 255, 7],
        [7, 255, 0, 255],
    ]
    cifar = attack(facts(channels=3, height=32, width=32), name="blind").trigger({})
    changed = cifar(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8)) != 7
    assert changed.any(1).nonzero()[:, 1:].aminmax(dim=0).min.tolist() == [3, 23]
    assert changed.sum() == 3 * 9


def test_defenses_that_need_poison_in_the_data_and_victims_of_others_are_refused() -> None:
    defenses = [
        {"name": name} for name in ("abl", "strip", "ep", "fine_tuning", "neural_cleanse", "scale_up")
    ]
    document: dict[str, Any] = {"attack": {"name": "blind"}, "defenses": defenses}
    refused = find_problems(ExperimentSpec.model_validate(document), BUILT_IN["cifar10"])
    assert [problem.field for problem in refused] == [f"defenses.{i}.name" for i in range(3)]
    assert "blind poisons no training image" in refused[0].allowed
    document = {"attack": {"name": "blind"}, "victim": {"model_id": "0" * 8 + "-0000" * 3 + "-" + "0" * 12}}
    [problem] = find_problems(ExperimentSpec.model_validate(document), BUILT_IN["cifar10"])
    assert problem.field == "victim"
    of_file, cifar10 = ExperimentSpec.model_validate({"attack": {"name": "blind"}}), BUILT_IN["cifar10"]
    [problem] = find_victim_problems(of_file, of_file.model, cifar10.shape, adds_trigger=False, facts=cifar10)
    assert (problem.field, problem.value) == ("victim", "a file")


def test_the_undefended_model_is_the_attackers_and_no_image_is_poisoned(tmp_path: Path) -> None:
    defenses = [
        {"name": name, "clean_ratio": 0.2, **SHORT[name]} for name in ("fine_tuning", "neural_cleanse")
    ]
    results = run_in(tmp_path, QUICK | {"loss_threshold": None}, defenses=defenses)
    values = {arm["arm"]: arm["seeds"][0] for arm in results["arms"]}
    undefended = values["undefended"]
    assert undefended["attack_success_rate"] == undefended["attacker_attack_success_rate"] > 0.9
    assert undefended["clean_accuracy"] == undefended["attacker_clean_accuracy"]
    assert values["fine_tuning"]["attack_success_rate"] is not None
    assert values["neural_cleanse"]["target_class_found"] in (0, 1)
    poisoned = json.loads((tmp_path / "out/seed-0/poisoned_indices.json").read_text())
    assert poisoned["indices"] == []
    assert poisoned["training_images"] == 300


def test_no_attack_before_the_loss_is_low(tmp_path: Path) -> None:
    results = run_in(tmp_path, QUICK | {"loss_threshold": 1e-6})
    assert results["arms"][0]["seeds"][0]["attack_success_rate"] < 0.5


def test_an_interrupted_training_ends_in_the_same_model() -> None:
    document = {
        "dataset": {"name": "digits", "train_size": 200, "test_size": 60},
        "model": {"name": "small_cnn", "width": 8},
        "attack": QUICK | {"joint_epochs": 4, "loss_threshold": 2.2},
        "training": {"epochs": 1, "batch_size": 50},
    }
    whole = memory.experiment(document)
    left, store = 10, memory.MemoryStore()

    def stop() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CanceledError("stopped by the test")

    with pytest.raises(CanceledError):
        memory.experiment(document, memory.MemoryRecorder(stop), store)
    resumed = memory.experiment(document, store=store)
    assert any("resumed from a checkpoint at epoch 2" in line for line in resumed.lines)
    model = "seed-0/undefended/model.safetensors"
    assert resumed.files[model] == whole.files[model]
