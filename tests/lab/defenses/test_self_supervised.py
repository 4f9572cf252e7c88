"""Contrastive training: its loss and its views against values computed by hand."""

import math

import pytest
import torch

from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn
from worker.lab.compute import Compute
from worker.lab.defenses.self_supervised import (
    Projected,
    Views,
    blur,
    contrastive_loss,
    contrastive_objective,
    jitter_colors,
    resized_crops,
    turn_hue,
)
from worker.lab.networks import build_network
from worker.lab.training import Batch

FIRST = torch.eye(2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_small_where_both_views_agree() -> None:
    # Of each sample the other view has cosine 1, both views of the other sample have 0.
    agreeing = contrastive_loss(FIRST, 3 * FIRST, temperature=1.0)
    assert agreeing.item() == pytest.approx(math.log(1 + 2 / math.e))
    # Exchanged views: the positive has 0, one of the others 1.
    assert contrastive_loss(FIRST, FIRST.flip(0), temperature=1.0).item() == pytest.approx(
        math.log(2 + math.e)
    )


def test_the_temperature_divides_the_cosines() -> None:
    assert contrastive_loss(FIRST, FIRST, temperature=0.5).item() == pytest.approx(
        math.log(1 + 2 * math.exp(-2))
    )


def test_the_logarithms_of_several_positives_are_averaged() -> None:
    # All other three vectors are positives: cosines 1, 0, 0.
    loss = contrastive_loss(FIRST, FIRST, 1.0, positives=torch.ones(2, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1 / 3)


def test_the_hue_leaves_brightness_and_gray_pixels_alone() -> None:
    gray = torch.full((1, 3, 2, 2), 0.4)
    turns = torch.tensor([[0.1]])
    assert torch.allclose(turn_hue(gray, turns), gray, atol=1e-3)
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 0.5
    turned = turn_hue(red, turns)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert (turned[0, :, 0, 0] @ luma).item() == pytest.approx(0.5 * 0.299, abs=1e-3)
    assert (turned - red).abs().max() > 0.05


def test_a_blur_spreads_half_of_the_images_and_keeps_their_sum() -> None:
    x = torch.zeros(200, 1, 11, 11)
    x[:, :, 5, 5] = 1
    blurred = blur(x, generator())
    assert torch.allclose(blurred.sum((1, 2, 3)), torch.ones(200), atol=1e-5)
    changed = (blurred[:, 0, 5, 5] < 0.9).float().mean().item()
    assert changed == pytest.approx(
        0.5 * (2 - 0.35) / 1.9, abs=0.12
    )  # below that deviation a pixel keeps 0.9


def test_a_crop_is_a_part_of_the_image_at_its_size() -> None:
    x = torch.linspace(0, 1, 16).expand(100, 1, 16, 16)  # brighter from left to right
    cropped = resized_crops(x, generator())
    widths = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    assert (cropped.diff(dim=3) >= -1e-5).all()
    # Widths of sqrt(0.2 / (4/3)) = 0.39 to 1 of the image, between the centers of the outer pixels.
    assert 0.3 < widths.min() < 0.6
    assert 0.9 < widths.max() <= 1


def test_views_are_random_and_repeatable() -> None:
    x = torch.rand(6, 3, 8, 8, generator=generator())
    views = Views(flip=True, blur=True)
    first, again, other = (views(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6
    assert torch.equal(jitter_colors(x, generator(1)), jitter_colors(x, generator(1)))


def test_the_features_are_trained_and_the_head_is_not() -> None:
    network = build_network(SmallCnn(), BUILT_IN["digits"], 0)
    projected = Projected(network, batch_norm=True).train()
    batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64), torch.arange(8), generator())
    contrastive_objective(Compute(torch.device("cpu")), Views(flip=False, blur=True), 0.5)(
        projected, batch
    ).backward()
    trained = {name for name, parameter in projected.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"network", "projection"}
    assert not any(name.startswith("network.head") for name in trained)
