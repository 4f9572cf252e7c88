"""Repairs with a new last layer, against values computed by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.fst import shift_objective
from worker.lab.defenses.heads import FixedNormSgd, scale_head
from worker.lab.networks import Network
from worker.lab.training import Batch, Recipe


class Linear(Network):
    """Two pixels to two classes."""

    def __init__(self) -> None:
        super().__init__(1)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


def test_the_loss_of_fst_has_the_inner_product_with_the_victim_s_last_layer() -> None:
    batch = Batch(torch.zeros(2, 1, 1, 2), torch.tensor([0, 1]), torch.arange(2), torch.Generator())
    original = torch.tensor([[1.0, 9.0], [9.0, -2.0]])
    loss = shift_objective(0.5, original)(Linear(), batch)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * (3 * 1 + 4 * -2), abs=1e-5)


def test_every_step_leaves_the_last_layer_with_the_given_norm() -> None:
    network = Linear()
    scale_head(network, torch.tensor(10.0))
    assert network.head.weight.flatten().tolist() == pytest.approx([6, 0, 0, 8])
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    optimizer = FixedNormSgd(network.parameters(), recipe, network, torch.tensor(5.0))

    def closure() -> float:
        loss = network.head.weight[0, 0] * 6.0  # its step is from 6 to 0
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    assert network.head.weight.flatten().tolist() == pytest.approx([0, 0, 0, 5])


def test_fst_removes_a_backdoor_and_fe_tuning_trains_no_last_layer() -> None:
    done = defended(BADNETS, {"name": "fst", "steps": 100}, {"name": "fe_tuning", "steps": 40})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "fst", "attack_success_rate") < 0.2
    assert number(done, "fst", "clean_accuracy") > 0.7
    assert number(done, "fe_tuning", "attack_success_rate") < 0.9
    assert number(done, "fe_tuning", "clean_accuracy") > 0.85
