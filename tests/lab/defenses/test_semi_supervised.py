"""MixMatch and the losses around it against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.lab.data.augment import Augment
from worker.lab.defenses.semi_supervised import (
    MixMatch,
    lowest,
    mixmatch_loss,
    sharpen,
    symmetric_cross_entropy,
)
from worker.lab.training import Batch


def test_symmetric_cross_entropy_is_bounded_where_cross_entropy_is_not() -> None:
    even = symmetric_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    assert even.item() == pytest.approx(0.1 * math.log(2) + 0.5 * math.log(1e4))
    wrong = symmetric_cross_entropy(torch.tensor([[-20.0, 20.0]]), torch.tensor([0]))
    assert wrong.item() == pytest.approx(0.1 * 40 + math.log(1e4), rel=1e-5)


def test_guesses_are_squared_and_scaled() -> None:
    assert sharpen(torch.tensor([[0.6, 0.4]]))[0].tolist() == pytest.approx([0.36 / 0.52, 0.16 / 0.52])


def test_the_loss_adds_the_square_distance_of_the_unlabeled_rows() -> None:
    logits = torch.zeros(3, 2)  # probabilities of one half
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    loss = mixmatch_loss(logits, targets, 1, weight=4.0)
    assert loss.item() == pytest.approx(math.log(2) + 4 * (0.25 + 0.25 + 0 + 0) / 4)


def test_the_lowest_values_are_chosen() -> None:
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2).tolist() == [False, True, False, True]


class Watched(nn.Module):
    """Remembers what it is given; its logits are even."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.zeros(len(x), 2, requires_grad=True)


class Unmixed:
    """In place of numpy's generator."""

    def beta(self, a: float, b: float) -> float:
        return 1.0


def test_only_unlabeled_images_are_guessed_and_their_weight_rises() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    objective = MixMatch(
        images, 2, Augment(), lambda pixels: pixels.float(), full_weight=8.0, ramp=2, steps=1
    )
    objective.unlabeled = torch.tensor([4, 5])
    objective.mixing = Unmixed()  # type: ignore[assignment]
    network: Any = Watched()
    batch = Batch(images[:2].float(), torch.tensor([0, 0]), torch.tensor([0, 1]), torch.Generator())
    losses = [objective(network, batch).item() for _ in range(4)]
    first, second, mixed = (x[:, 0, 0, 0] for x in network.seen[:3])
    assert set(first.tolist()) <= {4.0, 5.0}
    assert torch.equal(mixed, torch.cat([torch.tensor([0.0, 1.0]), first, second]))
    # Guesses of one half are what the network gives, so the unlabeled part is zero at any weight.
    assert losses == pytest.approx([math.log(2)] * 4)
    assert objective.done == 4


def test_mixing_moves_images_and_targets_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of the first image is at least one half; targets are mixed by the same share."""
    images = torch.tensor([[[[100]]], [[[200]]]], dtype=torch.uint8)
    objective = MixMatch(images, 2, Augment(), lambda pixels: pixels.float(), 1.0, 0, steps=1)
    objective.unlabeled = torch.tensor([1])
    monkeypatch.setattr(Unmixed, "beta", lambda self, a, b: 0.25)
    objective.mixing = Unmixed()  # type: ignore[assignment]
    given: list[Tensor] = []
    monkeypatch.setattr(
        "worker.lab.defenses.semi_supervised.mixmatch_loss",
        lambda logits, targets, labeled, weight: given.append(targets) or logits.sum(),
    )
    network: Any = Watched()
    batch = Batch(images[:1].float(), torch.tensor([0]), torch.tensor([0]), torch.Generator().manual_seed(1))
    objective(network, batch)
    pixels, targets = network.seen[2].flatten(), given[0]
    # Labeled: 100 and the target (1, 0). Unlabeled: 200 and (1/2, 1/2). So the pixel tells the target.
    assert targets[:, 0].tolist() == pytest.approx([1 - (value.item() - 100) / 200 for value in pixels])
    assert pixels[0].item() in (100.0, 125.0)
