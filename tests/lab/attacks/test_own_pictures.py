"""Triggers of the user's own: pictures with transparency, others at test time, and the strength at test time."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.lab.attacks.helpers import attack, digits, experiment, facts, poisoned, state_of
from worker.lab.evaluation import TestSet

HALF = 128 / 255


def png(pixels: list[Any]) -> str:
    """A PNG from rows of gray levels, of (gray, opacity), of (r, g, b) or of (r, g, b, opacity)."""
    stream = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def layer(value: int, opacity: int, height: int = 8, width: int = 8) -> str:
    return png([[(value, opacity)] * width] * height)


def gray(value: int, height: int = 4, width: int = 4) -> Tensor:
    return torch.full((1, 1, height, width), value, dtype=torch.uint8)


def test_a_picture_has_its_own_size_and_shows_the_image_where_it_is_transparent():
    picture = png([[(200, 255), (200, 128), (200, 0)]])  # 3 x 1 pixels
    made = attack(facts(), name="badnets", pattern="png", pattern_png=picture, position="top_left", margin=1)
    stamped = made.trigger({})(gray(100))[0, 0]
    assert stamped.tolist() == [
        [100, 100, 100, 100],
        [100, 200, round(100 + HALF * 100), 100],
        [100, 100, 100, 100],
        [100, 100, 100, 100],
    ]


def test_a_picture_in_color_keeps_its_colors():
    picture = png([[(255, 0, 10), (1, 2, 3)]])
    made = attack(facts(channels=3), name="badnets", pattern="png", pattern_png=picture, opacity=0.5)
    stamped = made.trigger({})(gray(100).expand(1, 3, 4, 4))[0, :, 3]
    assert stamped[:, 2:].tolist() == [[round(177.5), 50], [50, 51], [55, 52]]
    assert (stamped[:, :2] == 100).all()


@pytest.mark.parametrize(
    ("name", "strength", "test_strength"),
    [("badnets", "opacity", "test_opacity"), ("blend", "alpha", "test_alpha")],
)
def test_the_strength_at_test_time_is_a_field_of_its_own(name, strength, test_strength):
    fields: dict[str, Any] = {"name": name, strength: 0.25, test_strength: 1.0}
    fields |= {"pattern": "png", "pattern_png": png([[200] * 8] * 8)}
    data = digits()
    spec = experiment(**fields)
    made = attack(data.facts, **fields)
    state = state_of(spec, data)
    test = TestSet.make(data.test, made, state)
    assert test.triggered is not None
    assert (test.triggered.images == 200).all()
    trained = poisoned(spec, data)
    before = data.train.images[trained.is_poisoned].float()
    expected = (0.75 * before + 50).round()
    assert (trained.images[trained.is_poisoned].float() - expected).abs().max() <= 1  # ties
    # Null is the strength of training.
    del fields[test_strength]
    same = attack(data.facts, **fields)
    images = data.test.images[:5]
    assert torch.equal(same.trigger(state)(images), same.training_trigger(state)(images))


@pytest.mark.parametrize(
    "name", ["badnets", "tact", "adversarial_embedding", "blend", "adaptive_blend", "low_frequency"]
)
def test_another_picture_at_test_time(name):
    first, second = png([[0, 80] * 4] * 8), png([[80, 0] * 4] * 8)
    data = digits()
    spec = experiment(name=name, pattern="png", pattern_png=first, test_pattern_png=second)
    state, made = state_of(spec, data), attack(data.facts, **spec.attack.model_dump())
    alone = experiment(name=name, pattern="png", pattern_png=second)
    expected = attack(data.facts, **alone.attack.model_dump()).trigger(state_of(alone, data))
    images = data.test.images[:4]
    assert torch.equal(made.trigger(state)(images), expected(images))
    one = experiment(name=name, pattern="png", pattern_png=first)
    if name != "adaptive_blend":  # its training images need a run
        assert torch.equal(poisoned(spec, data).images, poisoned(one, data).images)


def test_a_transparent_pattern_is_blended_by_its_opacity():
    data = digits()
    for name in ("blend", "adaptive_blend"):
        fields = {"name": name, "alpha": 0.5, "pattern": "png", "pattern_png": layer(255, 0)}
        if name == "adaptive_blend":
            fields |= {"test_alpha": 0.5, "masked": 0.0}
        clear, spec = attack(data.facts, **fields), experiment(**fields)
        images = data.test.images[:3]
        assert torch.equal(clear.trigger(state_of(spec, data))(images), images)
        fields["pattern_png"] = layer(255, 128)
        made, spec = attack(data.facts, **fields), experiment(**fields)
        blended = made.trigger(state_of(spec, data))(images).float()
        expected = images.float() * (1 - 0.5 * HALF) + 0.5 * HALF * 255
        assert (blended - expected).abs().max() <= 0.51


def test_low_frequency_is_stronger_or_weaker_at_test_time():
    data = digits()
    spec = experiment(name="low_frequency", amplitude=20, test_amplitude=60)
    made, state = attack(data.facts, **spec.attack.model_dump()), state_of(spec, data)
    black = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert made.training_trigger(state)(black).max() == 20
    assert made.trigger(state)(black).max() == 60


def test_fields_of_test_time_leave_specs_from_before_as_they_were():
    for name in ("badnets", "blend", "low_frequency"):
        fields = experiment(name=name).attack.model_dump(mode="json")
        assert not [field for field in fields if field.startswith("test_")]
    assert "pattern_png" not in experiment(name="badnets").attack.model_dump(mode="json")
