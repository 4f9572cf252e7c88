"""LIRA: the generator and its change, on hand-made values and on a few digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from app.specs.metrics import OF_ATTACKER
from tests.lab import memory
from tests.lab.attacks.helpers import run_in
from worker.lab.attacks.generated import CombinedOptimizer
from worker.lab.attacks.lira import Autoencoder, ClassifierWithGenerators, stamp, without_gradients

EXAMPLES = Path(__file__).parents[3] / "examples"
QUICK = {"name": "lira", "generator_epochs": 2, "classifier_epochs": 1, "epsilon": 40}


class Constant(nn.Module):
    """A generator that makes the same change everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand_as(x)


def test_a_stamped_image_has_whole_gray_levels_and_the_gradient_before_rounding() -> None:
    generator = Constant(0.8)
    x = torch.tensor([[[[10.0, 254.0]]]]) / 255
    stamped = stamp(generator, x, 3.2)
    assert torch.allclose(stamped * 255, torch.tensor([13.0, 255.0]))  # 12.56 and 256.56
    stamped.sum().backward()
    assert generator.value.grad is not None
    assert generator.value.grad.item() == pytest.approx(
        3.2 / 255
    )  # of the first pixel: the second is clipped


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 36)])
def test_the_autoencoder_keeps_the_size(channels: int, height: int, width: int) -> None:
    network = Autoencoder(channels, min(height, width)).eval()
    made = network(torch.rand((2, channels, height, width)))
    assert made.shape == (2, channels, height, width)
    assert made.abs().max() < 1
    halvings = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert len(halvings) == (3 if height == 8 else 4)
    assert halvings[0].out_channels == 16


def test_the_generators_loss_moves_the_generator_alone() -> None:
    generator, classifier = Constant(0.5), nn.Linear(2, 1)
    x = torch.ones((1, 1, 1, 2)) / 2
    with without_gradients(classifier):
        first = classifier(stamp(generator, x, 3).flatten(1)).sum()
    (first + classifier(x.flatten(1)).sum()).backward()
    assert generator.value.grad is not None
    assert classifier.weight.grad is not None
    assert torch.equal(classifier.weight.grad, x.flatten(1))  # of the second loss alone


def test_a_factor_multiplies_one_optimizers_learning_rate() -> None:
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    both = CombinedOptimizer(torch.optim.SGD([a], lr=1.0), torch.optim.SGD([b], lr=1.0), factors=(1.0, 0.25))

    def closure() -> float:
        a.grad, b.grad = torch.ones(1), torch.ones(1)
        return 0.0

    for _ in range(2):
        for group in both.param_groups:  # as the training loop does before every step
            group["lr"] = 0.5
        both.step(closure)
    assert (a.item(), b.item()) == (-1.0, -0.25)


def test_the_classifier_is_poisoned_by_the_generator_of_the_last_epoch() -> None:
    networks = ClassifierWithGenerators(nn.Linear(1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    with torch.no_grad():
        networks.generator.weight.fill_(3)
    assert networks.previous.weight.item() == 1
    networks.keep_generator()
    assert networks.previous.weight.item() == 3
    networks.train()
    assert networks.generator.training
    assert not networks.previous.training
    assert not any(parameter.requires_grad for parameter in networks.previous.parameters())


def test_the_attackers_model_is_handed_over_if_asked(tmp_path: Path) -> None:
    values = run_in(tmp_path, QUICK | {"hand_over": True, "poisoning_rate": 0.2})["arms"][0]["seeds"][0]
    assert values["clean_accuracy"] == values["attacker_clean_accuracy"]
    assert values["attack_success_rate"] == values["attacker_attack_success_rate"]
    poisoned = json.loads((tmp_path / "out/seed-0/poisoned_indices.json").read_text())
    assert len(poisoned["indices"]) == 60


def test_lira_end_to_end(tmp_path: Path) -> None:
    results = run_in(tmp_path, QUICK | {"export": True})
    values = results["arms"][0]["seeds"][0]
    assert all(0 <= values[name] <= 1 for name in OF_ATTACKER[:2])
    assert values["l_inf"] <= 40
    points = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = {p["step"] for p in points if p["arm"] == "attack" and p["name"] == "attack_success_rate"}
    assert len(steps) == 3  # two joint epochs, and one of the classifier
    set_ = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert set_["is_poisoned"].sum() == 30
    assert (set_["y_train"][set_["is_poisoned"]] == 0).all()
    state = load_file(tmp_path / "out/seed-0/trigger.safetensors")
    assert all(name.startswith("generator.") for name in state)
    assert (tmp_path / "out/seed-0/attack/generator.png").is_file()


@pytest.mark.long  # twenty seconds: generator and classifier must be trained until they work
def test_lira_succeeds_on_digits() -> None:
    document = json.loads(Path("examples/digits-lira.json").read_text()) | {"defenses": []}
    values = memory.experiment(document).results["undefended", 0]
    assert values["attack_success_rate"] > 0.95
    assert values["clean_accuracy"] > 0.95
