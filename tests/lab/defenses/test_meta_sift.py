"""Meta-Sift: its steps against values computed by hand, and what is done with the clean subset."""

import pytest
import torch
from torch import Tensor, nn

from app.specs.defenses.repair import IBau
from app.specs.defenses.sifting import REPAIRS, MetaSift
from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.meta_sift import (
    LAYER,
    highest_of_each_class,
    layers_of,
    learn_weights,
    normalize,
    sifting_objective,
)
from worker.lab.defenses.perceptron import apply_layers, make_layers
from worker.lab.networks import Network
from worker.lab.training import Batch


class TwoLogits(Network):
    """A logit that is a multiple of the only pixel, and one that is zero."""

    def __init__(self) -> None:
        super().__init__(1)
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.slope * x[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(seen), seen], 1)


def small_memory() -> dict[str, Tensor]:
    layers = make_layers((1, 100, 150, 1), torch.Generator().manual_seed(0))
    return {f"{LAYER}{i}": layer.detach() for i, layer in enumerate(layers)} | {"done": torch.tensor(0)}


def batch() -> Batch:
    """Two images with a low loss and one, whose label is wrong, with a high one."""
    x = torch.tensor([2.0, 1.0, 3.0]).view(3, 1, 1, 1)
    labels = torch.tensor([1, 1, 0])
    return Batch(x, labels, labels, torch.Generator().manual_seed(0))


def test_weights_are_divided_by_their_sum_unless_that_is_nearly_zero() -> None:
    assert normalize(torch.tensor([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert normalize(torch.tensor([1e-5, 2e-5])).tolist() == pytest.approx([1e-5, 2e-5])


def test_the_small_network_goes_along_the_derivative_through_the_virtual_step() -> None:
    given = MetaSift(weight_learning_rate=1.0, virtual_learning_rate=0.5)
    memory, network, seen = small_memory(), TwoLogits(), batch()
    x, signs = seen.x.flatten(), torch.tensor([1.0, 1.0, -1.0])

    def goal(layers: list[Tensor]) -> Tensor:
        """Minus the loss of the others after the virtual step, with the derivative of log(1 + exp(-s a x)) by hand."""
        losses = (1 + (-signs * x).exp()).log()
        weights = apply_layers(layers, losses[:, None])
        slope = 1 + 0.5 * (weights / weights.sum() * signs * x * (-signs * x).sigmoid()).sum()
        after = (1 + (-signs * slope * x).exp()).log()
        others = 1 - apply_layers(layers, after.detach()[:, None])
        return -(others / others.sum() * after).sum()

    layers = [layer.clone().requires_grad_() for layer in layers_of(memory)]
    expected = torch.autograd.grad(goal(layers), layers)
    before = [layer.clone() for layer in layers_of(memory)]
    learn_weights(given, memory, network, seen)
    for layer, old, gradient in zip(layers_of(memory), before, expected, strict=True):
        assert torch.allclose(old - layer, gradient, atol=1e-6)
    assert network.slope.item() == 1.0  # the step was virtual


def test_high_losses_lose_their_weight_and_warm_up_has_none() -> None:
    given = MetaSift(warm_up_steps=1, weight_learning_rate=0.1)
    memory, network = small_memory(), TwoLogits()
    objective = sifting_objective(given, memory)
    losses = torch.tensor([0.1269, 0.3133, 3.0486])  # log(1 + exp(-2)), log(1 + exp(-1)), log(1 + exp(3))
    assert objective(network, batch()).item() == pytest.approx(losses.mean().item(), abs=1e-4)
    for _ in range(20):
        loss = objective(network, batch())
    weights = apply_layers(layers_of(memory), losses[:, None])
    assert weights[2] < 0.5 * weights[0]
    assert loss.item() == pytest.approx((normalize(weights) * losses).sum().item(), abs=1e-4)


def test_a_share_of_each_class_is_kept_rounded_up() -> None:
    weights = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.7, 0.2])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert highest_of_each_class(weights, labels, 0.34).tolist() == [1, 2, 3, 4]
    assert highest_of_each_class(weights, labels, 0.1).tolist() == [1, 3]


def test_the_clean_subset_repairs_the_victim_and_its_purity_is_a_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(REPAIRS, "i_bau", lambda: IBau(rounds=1, steps=8))  # the defaults take 15 seconds
    done = defended(
        BADNETS,
        {"name": "meta_sift", "sifters": 1, "warm_up_steps": 1, "steps": 1, "kept_ratio": 0.05},
        epochs=3,
    )
    purity = number(done, "meta_sift", "clean_subset_purity")
    lines = done.files["seed-0/meta_sift/detection.csv"].decode().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    kept = [row for row in rows if row["kept"] == "1"]
    assert 72 <= len(kept) <= 82  # a twentieth of each class, rounded up
    assert purity == pytest.approx(sum(row["is_poisoned"] == "0" for row in kept) / len(kept))
    assert not any(row["isolated"] == "1" for row in rows)
    assert "isolation_recall" not in done.results["meta_sift", 0]  # nothing is flagged
    victim, repaired = (done.files[f"seed-0/{arm}/model.safetensors"] for arm in ("undefended", "meta_sift"))
    assert victim != repaired
    assert [kind for kind, *_ in MetaSift(sifters=2, then="fine_tuning").stages()] == [
        "sifter_1",
        "sifter_2",
        "detection",
        "repair",
    ]
