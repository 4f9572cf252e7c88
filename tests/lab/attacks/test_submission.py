"""What is refused before anything is computed, and which field the error names."""

import base64
import io
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from app.specs.base import PresetSpec
from app.specs.checks import find_problems
from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn
from app.specs.models.base import Traits
from app.specs.stages import plan
from tests.lab.attacks.helpers import EVERY, experiment


def png(height: int, width: int, mode: str = "L") -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def refused(dataset: str = "digits", **attack: Any) -> list[str]:
    return [problem.field for problem in find_problems(experiment(**attack), BUILT_IN[dataset])]


@pytest.mark.parametrize("name", EVERY)
def test_every_attack_runs_as_it_is_on_cifar10(name):
    assert refused("cifar10", name=name) == []


@pytest.mark.parametrize("name", EVERY)
def test_every_preset_of_an_attack_runs_on_cifar10_and_sets_other_fields_than_the_default(name):
    default = experiment(name=name).attack
    assert isinstance(default, PresetSpec)
    for preset, made in default.presets.items():
        assert refused("cifar10", name=name, preset=preset) == []
        fields = dict(experiment(name=name, preset=preset).attack)
        differing = {field for field, value in default if fields[field] != value}
        assert differing - {"preset"} == set(made.values)


@pytest.mark.parametrize(
    ("attack", "field"),
    [
        ({"name": "sig", "rate_of": "training_set", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "clean_label", "rate_of": "training_set", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "hidden_trigger", "rate_of": "training_set"}, "attack.poisoning_rate"),
        ({"name": "badnets", "poisoning_rate": 0.95}, "attack.poisoning_rate"),
        ({"name": "badnets", "size": 9}, "attack.size"),
        ({"name": "badnets", "size": 6, "margin": 3}, "attack.size"),
        ({"name": "trojan", "size": 9}, "attack.size"),
        ({"name": "hidden_trigger", "size": 9}, "attack.size"),
        ({"name": "clean_label", "size": 5}, "attack.size"),
        ({"name": "clean_label", "size": 9, "corners": "one"}, "attack.size"),
        ({"name": "single_pixel", "row": 8}, "attack.row"),
        ({"name": "tact", "source_class": 0}, "attack.source_class"),
        ({"name": "tact", "source_class": 10}, "attack.source_class"),
        ({"name": "tact", "cover_classes": [5, 1]}, "attack.cover_classes"),
        ({"name": "tact", "cover_classes": [12]}, "attack.cover_classes"),
        ({"name": "tact", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "tact", "cover_classes": [5], "cover_rate": 0.2}, "attack.cover_rate"),
        ({"name": "adaptive_blend", "pieces": 9}, "attack.pieces"),
        ({"name": "adaptive_blend", "poisoning_rate": 0.5, "cover_rate": 0.6}, "attack.cover_rate"),
        ({"name": "bpp", "poisoning_rate": 0.6, "cover_rate": 0.5}, "attack.cover_rate"),
        ({"name": "adaptive_patch", "poisoning_rate": 0.5, "cover_rate": 0.6}, "attack.cover_rate"),
        (
            {"name": "adaptive_patch", "patches": [{}, {"pattern": "png", "png": png(9, 8)}]},
            "attack.patches.1.png",
        ),
        ({"name": "ftrojan", "window": 3}, "attack.window"),
        ({"name": "ftrojan", "frequencies": [8]}, "attack.frequencies"),
        ({"name": "ctrl", "frequencies": [8]}, "attack.frequencies"),
        ({"name": "ctrl", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "narcissus", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "witches_brew", "target_image": 360}, "attack.target_image"),
        ({"name": "witches_brew", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        ({"name": "sleeper_agent", "source_class": 0}, "attack.source_class"),
        ({"name": "sleeper_agent", "source_class": 10}, "attack.source_class"),
        ({"name": "sleeper_agent", "size": 9}, "attack.size"),
        ({"name": "sleeper_agent", "poisoning_rate": 0.2}, "attack.poisoning_rate"),
        (
            {"name": "k_way", "triggers": [{"name": "single_pixel", "row": 8}, {"name": "badnets"}]},
            "attack.triggers.0.row",
        ),
        ({"name": "k_way", "poisoning_rate": 0.5, "cover_rate": 0.6}, "attack.cover_rate"),
        (
            {"name": "multi_target", "triggers": [{"name": "sig"}, {"name": "badnets", "size": 9}]},
            "attack.triggers.1.size",
        ),
        (
            {"name": "multi_target", "triggers": [{"name": "sig"}, {"name": "badnets", "target_class": 12}]},
            "attack.triggers.1.target_class",
        ),
        (
            {"name": "multi_target", "triggers": [{"name": "badnets", "target_class": c} for c in range(10)]},
            "attack.triggers",
        ),
        ({"name": "multi_target", "poisoning_rate": 0.9}, "attack.poisoning_rate"),
        ({"name": "single_pixel", "column": -9}, "attack.column"),
        ({"name": "adversarial_embedding", "size": 9}, "attack.size"),
        ({"name": "adversarial_embedding", "poisoning_rate": 0.95}, "attack.poisoning_rate"),
        (
            {"name": "adversarial_embedding", "label_mode": "all_to_all", "target_class": 3},
            "attack.target_class",
        ),
        ({"name": "blind", "row": 4}, "attack.row"),
        ({"name": "blind", "column": 6}, "attack.column"),
        ({"name": "lira", "poisoning_rate": 0.95}, "attack.poisoning_rate"),
        ({"name": "issba", "label_mode": "all_to_all", "target_class": 3}, "attack.target_class"),
        ({"name": "single_pixel", "value": [1, 2, 3]}, "attack.value"),
        ({"name": "single_pixel", "preset": "authors", "row": 0, "column": 0}, "attack.value"),
        ({"name": "sig", "label_mode": "all_to_all"}, "attack.label_mode"),
        ({"name": "badnets", "label_mode": "all_to_all", "target_class": 3}, "attack.target_class"),
        (
            {"name": "sig", "clean_label": False, "label_mode": "all_to_all"},
            "attack.rate_of",
        ),
        ({"name": "badnets", "target_class": 10}, "attack.target_class"),
        ({"name": "low_frequency", "waves": 9}, "attack.waves"),
        ({"name": "wanet", "grid": 9}, "attack.grid"),
        ({"name": "wanet", "poisoning_rate": 0.5, "cross_ratio": 2}, "attack.cross_ratio"),
        ({"name": "input_aware", "poisoning_rate": 0.5, "cross_rate": 0.6}, "attack.cross_rate"),
        ({"name": "blend", "pattern": "image", "pattern_index": 1437}, "attack.pattern_index"),
        ({"name": "blend", "pattern": "png", "pattern_png": png(8, 9)}, "attack.pattern_png"),
        ({"name": "blend", "pattern": "png", "pattern_png": png(8, 8, "RGB")}, "attack.pattern_png"),
        ({"name": "low_frequency", "pattern": "png", "pattern_png": png(9, 8)}, "attack.pattern_png"),
        ({"name": "poison_frogs", "target_image": 360}, "attack.target_image"),
    ],
)
def test_fields_that_do_not_fit_the_data_are_named(attack, field):
    assert refused(**attack) == [field]


def test_attacks_that_match_gradients_need_a_network_that_has_them(monkeypatch):
    monkeypatch.setattr(SmallCnn, "traits", lambda self, side: Traits(gradients=False))
    for name in ("witches_brew", "sleeper_agent"):
        assert refused("cifar10", name=name) == ["attack.name"]
    assert refused("cifar10", name="narcissus") == []


def test_a_pattern_of_the_right_shape_is_accepted():
    assert refused(name="blend", pattern="png", pattern_png=png(8, 8)) == []
    assert refused("cifar10", name="blend", pattern="png", pattern_png=png(32, 32, "RGB")) == []


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"name": "blend", "pattern": "png"}, "pattern_png is required"),
        ({"name": "blend", "pattern_index": 3}, "pattern_index is required"),
        ({"name": "low_frequency", "pattern": "png"}, "pattern_png is required"),
        ({"name": "badnets", "pattern": "png"}, "pattern_png is required"),
        (
            {"name": "badnets", "pattern_png": png(2, 2)},
            "pattern_png is required if pattern is 'png', and not",
        ),
        (
            {"name": "badnets", "test_pattern_png": png(2, 2)},
            "test_pattern_png is only allowed if pattern is 'png'",
        ),
        ({"name": "badnets", "pattern": "png", "pattern_png": "%%%"}, "pattern_png must be base64"),
        ({"name": "badnets", "test_opacity": 0}, "test_opacity"),
        ({"name": "low_frequency", "pattern": "image"}, "pattern"),
        ({"name": "blend", "pattern": "png", "pattern_png": "%%%"}, "pattern_png must be base64"),
        ({"name": "adaptive_patch", "patches": [{"pattern": "png"}]}, "png is required"),
        ({"name": "adaptive_patch", "patches": [{"size": 0.8, "margin": 0.3}]}, "must be at most 1"),
        ({"name": "adaptive_patch", "test_patches": []}, "test_patches"),
        ({"name": "k_way", "triggers": [{"name": "badnets"}]}, "triggers"),
        ({"name": "k_way", "triggers": [{"name": "badnets"}, {"name": "trojan"}]}, "trojan"),
        (
            {"name": "k_way", "triggers": [{"name": "badnets"}, {"name": "badnets", "target_class": 1}]},
            r"triggers\.1\.target_class must be left out",
        ),
        (
            {
                "name": "multi_target",
                "triggers": [{"name": "sig", "poisoning_rate": 0.2}, {"name": "badnets"}],
            },
            r"triggers\.0\.poisoning_rate must be left out",
        ),
        (
            {"name": "k_way", "triggers": [{"name": "sig"}, {"name": "low_frequency", "pattern": "search"}]},
            r"triggers\.1: low_frequency must need no training",
        ),
        ({"name": "multi_target", "target_class": 3}, "target_class"),
        (
            {"name": "adversarial_embedding", "joint_epochs": 2, "warmup_epochs": 2},
            "warmup_epochs must be less than joint_epochs",
        ),
        ({"name": "adversarial_embedding", "adversarial_weight": 0}, "adversarial_weight"),
        ({"name": "adversarial_embedding", "discriminator_training": "never"}, "discriminator_training"),
        ({"name": "blind", "joint_epochs": 1}, "history_epochs must be less than joint_epochs"),
        ({"name": "wanet", "hand_over": True}, "hand_over requires joint_epochs"),
        ({"name": "lira", "epsilon": 0.5}, "epsilon"),
        ({"name": "clean_label", "label_mode": "all_to_all"}, "label_mode"),
        ({"name": "hidden_trigger", "label_mode": "all_to_all"}, "label_mode"),
        ({"name": "badnets", "poisoning_rate": 0}, "poisoning_rate"),
        ({"name": "single_pixel", "value": [1, 2, 256]}, "value"),
        ({"name": "single_pixel", "value": -1}, "value"),
        ({"name": "badnets", "poisoning_rate": 1.5}, "poisoning_rate"),
    ],
)
def test_invalid_fields_are_refused_by_the_spec(attack, said):
    with pytest.raises(ValidationError, match=said):
        experiment(**attack)


def damaged(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[-20] ^= 255
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (png(8, 9), "9x8 pixels in gray"),
        (png(8, 8, "RGB"), "8x8 pixels in color"),
        (png(8, 8, "RGBA"), "8x8 pixels in color"),
        (png(8, 8, "I;16"), "a PNG file with a bit depth other than 8"),
        (png(8, 8, "1"), "a PNG file with a bit depth other than 8"),
        (damaged(png(8, 8)), "not a PNG file, or a damaged one"),
        (png(8, 8)[:40], "not a PNG file, or a damaged one"),
        ("QUJD", "not a PNG file, or a damaged one"),
    ],
)
def test_an_unusable_pattern_is_described(pattern, value):
    [problem] = find_problems(
        experiment(name="blend", pattern="png", pattern_png=pattern), BUILT_IN["digits"]
    )
    assert (problem.field, problem.value) == ("attack.pattern_png", value)
    assert problem.allowed == "a PNG file of 8x8 pixels in gray, 8 bits per channel"


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        (
            {"name": "badnets", "pattern_png": png(9, 2)},
            "attack.pattern_png",
            "a PNG file of at most 8x8 pixels in gray, with margin, 8 bits per channel",
        ),
        ({"name": "badnets", "pattern_png": png(2, 3), "margin": 6}, "attack.pattern_png", "at most 8x8"),
        ({"name": "tact", "pattern_png": png(2, 2, "RGBA")}, "attack.pattern_png", "in gray"),
        (
            {"name": "badnets", "pattern_png": png(2, 3), "test_pattern_png": png(3, 2)},
            "attack.test_pattern_png",
            "3x2 pixels in gray, as pattern_png",
        ),
        (
            {"name": "blend", "pattern_png": png(8, 8), "test_pattern_png": png(7, 8)},
            "attack.test_pattern_png",
            "8x8 pixels in gray",
        ),
        (
            {"name": "low_frequency", "pattern_png": png(8, 8, "LA")},
            "attack.pattern_png",
            "without transparency",
        ),
    ],
)
def test_a_picture_that_does_not_fit_its_place_is_refused(fields, field, allowed):
    [problem] = find_problems(experiment(pattern="png", **fields), BUILT_IN["digits"])
    assert problem.field == field
    assert allowed in problem.allowed


@pytest.mark.parametrize("name", ["badnets", "tact", "adversarial_embedding", "blend", "adaptive_blend"])
def test_a_picture_may_be_transparent(name):
    fields = {"name": name, "pattern": "png", "pattern_png": png(8, 8, "LA"), "test_pattern_png": png(8, 8)}
    assert refused(**fields) == []


def kinds_and_keys(**attack: Any) -> dict[str, str]:
    return {stage.kind: stage.key for stage in plan(experiment(**attack))}


def test_attacks_share_a_surrogate_of_equal_training():
    trojan, frogs = kinds_and_keys(name="trojan"), kinds_and_keys(name="poison_frogs")
    assert trojan["surrogate"] == frogs["surrogate"]
    assert trojan["poisoned_set"] != frogs["poisoned_set"]
    assert kinds_and_keys(name="clean_label")["surrogate"] != trojan["surrogate"]  # an adversarial one
    plain = kinds_and_keys(name="clean_label", surrogate_adversarial=False, surrogate_steps=3)
    assert plain["surrogate"] == trojan["surrogate"]


def test_trigger_fields_do_not_change_the_perturbations_key():
    one, four = (kinds_and_keys(name="clean_label", corners=c) for c in ("one", "four"))
    assert one["perturbations"] == four["perturbations"]
    assert one["poisoned_set"] != four["poisoned_set"]
    other = kinds_and_keys(name="clean_label", pgd_epsilon=8)
    assert other["surrogate"] == one["surrogate"]
    assert other["perturbations"] != one["perturbations"]


def test_export_changes_no_stage():
    assert kinds_and_keys(name="badnets") == kinds_and_keys(name="badnets", export=True)
