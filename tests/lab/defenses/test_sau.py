"""Shared adversarial unlearning: its losses by hand, and what it removes."""

import math

import pytest
import torch
from torch import Tensor

from app.specs.defenses.unlearning import Sau
from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.sau import jensen_shannon, share_perturbation, shared_loss
from worker.lab.networks import Network


class Threshold(Network):
    """Class 1 for an image of one pixel below ``bound``, else class 0."""

    def __init__(self, bound: float) -> None:
        super().__init__(1)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([torch.zeros_like(x), 10 * (self.bound - x)], 1)


def test_a_shared_perturbation_fools_both_models_and_stays_within_its_radius() -> None:
    x, labels = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    spec = Sau(radius=0.2, attack_step_size=0.15)
    own, victim = Threshold(0.35), Threshold(0.35)  # as they agree, only cross-entropies have a gradient
    # From the upper corner, 0.2, down in steps of 0.15; the third leaves the ball, and at 0.3 both models are fooled.
    delta = share_perturbation(spec, own, victim, x, labels)
    assert delta.flatten().tolist() == pytest.approx([-0.2, -0.2])
    # In a larger ball it would go on if shared images were not left as they are: 0.4, 0.25, 0.1, -0.05, -0.2.
    wide = Sau(radius=0.4, attack_step_size=0.15, attack_steps=9)
    assert share_perturbation(wide, own, victim, x, labels).flatten().tolist() == pytest.approx([-0.2, -0.2])


def test_the_divergence_of_two_certain_predictions_is_log_2() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert jensen_shannon(p, p.flip(1)).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)


def test_the_shared_loss_is_over_images_that_fool_the_victim() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 5.0]])
    fooled = torch.tensor([True, False])
    loss = shared_loss(logits, torch.tensor([0, 1]), fooled)
    assert loss.item() == pytest.approx(-math.log(1 / 4) / 2, abs=1e-4)


# Ten passes through two models for each of a hundred steps: ten seconds of one core.
@pytest.mark.long
def test_sau_removes_a_backdoor_whose_trigger_is_within_the_radius() -> None:
    strong = {"steps": 120, "learning_rate": 1e-3, "radius": 1.0, "attack_step_size": 0.5, "clean_ratio": 0.2}
    done = defended(BADNETS, {"name": "sau", **strong})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "sau", "attack_success_rate") < 0.2
    assert number(done, "sau", "clean_accuracy") > 0.9
