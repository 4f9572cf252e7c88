"""Which samples are poisoned, and what becomes of their labels."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.specs.attack import PoisoningAttack
from app.specs.checks import find_problems, poison_count
from tests.lab.attacks.helpers import CHEAP, digits, experiment, poisoned, split, state_of
from worker.lab.attacks import make_attack
from worker.lab.attacks.poisoning import build_poisoned_set, choose_poisoned, make_poison
from worker.lab.evaluation import TestSet


@pytest.mark.parametrize("name", CHEAP)
def test_only_chosen_samples_differ_and_the_truth_is_kept(name):
    data, spec = digits(), experiment(name=name)
    made = poisoned(spec, data)
    touched = made.is_poisoned | made.is_cross
    assert torch.equal(made.images[~touched], data.train.images[~touched])
    assert torch.equal(made.labels[~made.is_poisoned], data.train.labels[~made.is_poisoned])
    assert torch.equal(made.clean_labels, data.train.labels)
    assert isinstance(spec.attack, PoisoningAttack)
    if spec.attack.clean_label_only:
        assert torch.equal(made.labels, data.train.labels)
        assert (made.clean_labels[made.is_poisoned] == 0).all()
    else:
        assert made.is_poisoned.sum() == poison_count(spec, data.facts)
        assert (made.labels[made.is_poisoned] != made.clean_labels[made.is_poisoned]).all()
        targets = set(getattr(spec.attack, "targets", (0,)))
        assert set(made.labels[made.is_poisoned].tolist()) == targets
        assert not targets & set(made.clean_labels[made.is_poisoned].tolist())


def test_a_cross_sample_is_no_poison_and_keeps_its_label():
    data = digits()
    made = poisoned(experiment(name="wanet"), data)
    assert made.is_cross.sum() == round(0.2 * len(data.train))
    assert not (made.is_cross & made.is_poisoned).any()
    assert torch.equal(made.labels[made.is_cross], data.train.labels[made.is_cross])
    assert not torch.equal(made.images[made.is_cross], data.train.images[made.is_cross])


def test_tact_poisons_one_class_and_covers_the_others():
    data = digits()
    spec = experiment(name="tact", target_class=0, source_class=4, poisoning_rate=0.05, cover_rate=0.1)
    made = poisoned(spec, data)
    assert (made.clean_labels[made.is_poisoned] == 4).all()
    assert (made.labels[made.is_poisoned] == 0).all()
    assert set(made.clean_labels[made.is_cross].tolist()) == {1, 2, 3, 5, 6, 7, 8, 9}
    assert (made.is_poisoned.sum(), made.is_cross.sum()) == (72, 144)
    patch = made.images[made.is_poisoned | made.is_cross][:, 0, 5:, 5:]
    assert (patch == patch[0]).all()
    attack = make_attack(spec.attack, data.facts)
    test = TestSet.make(data.test, attack, {})
    assert (data.test.labels[test.origin] == 4).all()
    assert len(test.origin) == (data.test.labels == 4).sum()
    assert test.cross is not None
    assert not torch.isin(test.cross.labels, torch.tensor([0, 4])).any()
    few = poisoned(experiment(name="tact", cover_classes=[5, 7]), data)
    assert set(few.clean_labels[few.is_cross].tolist()) == {5, 7}


def test_adaptive_blend_hides_half_of_the_pattern_in_training_and_nothing_at_test_time():
    data = digits()
    fields = {"pieces": 2, "alpha": 1.0, "test_alpha": 1.0, "poisoning_rate": 0.02, "cover_rate": 0.05}
    spec = experiment(name="adaptive_blend", **fields)
    attack, chosen = make_attack(spec.attack, data.facts), choose_poisoned(spec, data, 0)
    assert attack is not None
    lab: Any = SimpleNamespace(train=data.train, chosen=chosen, seed=0)
    prepared = attack.prepare(lab)
    made = build_poisoned_set(data.train, make_poison(spec, data, attack, prepared, 0))
    pattern = prepared.state["pattern"]
    assert torch.equal(attack.trigger(prepared.state)(data.test.images[:3]), pattern.expand(3, -1, -1, -1))
    hidden = set()
    for rows in (made.is_poisoned, made.is_cross):
        original = data.train.images[rows]
        differing = (made.images[rows] != original).view(-1, 2, 4, 2, 4).any(4).any(2)
        assert (differing.sum((1, 2)) == 2).all()  # of four squares
        hidden |= {tuple(square.flatten().tolist()) for square in differing}
        assert torch.equal(torch.where(made.images[rows] != original, pattern, original), made.images[rows])
    assert len(hidden) == 6  # any two of four


def test_adaptive_patch_puts_one_patch_into_each_training_image_and_covers_in_the_same_way():
    data = digits()
    patches = [
        {"pattern": "white", "size": 0.25, "positions": [place]} for place in ("top_left", "bottom_right")
    ]
    spec = experiment(name="adaptive_patch", poisoning_rate=0.1, cover_rate=0.2, patches=patches)
    attack, chosen = make_attack(spec.attack, data.facts), choose_poisoned(spec, data, 0)
    assert attack is not None
    lab: Any = SimpleNamespace(train=data.train, chosen=chosen, seed=0)
    made = build_poisoned_set(data.train, make_poison(spec, data, attack, attack.prepare(lab), 0))
    assert (made.is_poisoned.sum(), made.is_cross.sum()) == (144, 287)
    assert not (made.is_poisoned & made.is_cross).any()
    assert (made.labels[made.is_poisoned] == 0).all()
    assert torch.equal(made.labels[made.is_cross], data.train.labels[made.is_cross])
    for rows, first in ((made.is_poisoned, 72), (made.is_cross, 144)):
        images, original = made.images[rows].clone(), data.train.images[rows]
        for some, place in ((slice(0, first), slice(0, 2)), (slice(first, None), slice(6, 8))):
            assert (images[some, 0, place, place] == 255).all()
            images[some, 0, place, place] = original[some, 0, place, place]
        assert torch.equal(images, original)  # nothing else changed


def test_bpps_cover_samples_carry_the_change_of_another_image():
    data = digits()
    spec = experiment(name="bpp", poisoning_rate=0.1, cover_rate=0.2)
    made, residuals = poisoned(spec, data), state_of(spec, data)["residuals"]
    assert (made.is_poisoned.sum(), made.is_cross.sum()) == (144, 287)
    assert torch.equal(made.labels[made.is_cross], data.train.labels[made.is_cross])
    original, covers = data.train.images[made.is_cross].short(), made.images[made.is_cross].short()
    candidates = (original[:, None] + residuals[None]).clamp(0, 255)
    assert (candidates == covers[:, None]).flatten(2).all(2).any(1).all()
    assert poisoned(experiment(name="bpp", cover_rate=0), data).is_cross.sum() == 0


def test_k_way_puts_one_trigger_into_each_training_image():
    data = digits()
    pixels = [{"name": "single_pixel", "row": 0, "column": column, "value": 99} for column in (0, 7)]
    spec = experiment(name="k_way", triggers=pixels, poisoning_rate=0.1, cover_rate=0.2)
    attack, chosen = make_attack(spec.attack, data.facts), choose_poisoned(spec, data, 0)
    assert attack is not None
    lab: Any = SimpleNamespace(train=data.train, chosen=chosen, seed=0)
    made = build_poisoned_set(data.train, make_poison(spec, data, attack, attack.prepare(lab), 0))
    assert (made.is_poisoned.sum(), made.is_cross.sum()) == (144, 287)
    assert torch.equal(made.labels[made.is_cross], data.train.labels[made.is_cross])
    for rows, first in ((made.is_poisoned, 72), (made.is_cross, 144)):
        images, original = made.images[rows].clone(), data.train.images[rows]
        for some, column in ((slice(0, first), 0), (slice(first, None), 7)):
            assert (images[some, 0, 0, column] == 99).all()
            images[some, 0, 0, column] = original[some, 0, 0, column]
        assert torch.equal(images, original)


def test_multi_target_poisons_no_image_of_a_target_class_and_uses_all_triggers():
    data = digits()
    triggers = [{"name": "badnets", "target_class": 2}, {"name": "blend", "target_class": 6}]
    spec = experiment(name="multi_target", triggers=triggers)
    made = poisoned(spec, data)
    labels = made.labels[made.is_poisoned]
    assert labels.unique().tolist() == [2, 6]
    assert 40 < (labels == 2).sum() < 104  # of 144
    assert not torch.isin(made.clean_labels[made.is_poisoned], torch.tensor([2, 6])).any()
    test = TestSet.make(data.test, make_attack(spec.attack, data.facts), state_of(spec, data))
    assert test.targets is not None
    assert test.targets.unique().tolist() == [2, 6]
    assert len(test.targets) == (~torch.isin(data.test.labels, torch.tensor([2, 6]))).sum()


def test_poisoned_rows_follow_from_the_seed_and_not_from_the_trigger():
    data = digits()
    first = choose_poisoned(experiment(name="badnets"), data, seed=5)
    assert torch.equal(first, choose_poisoned(experiment(name="blend", alpha=0.9), data, seed=5))
    assert torch.equal(first, choose_poisoned(experiment(name="badnets", size=1), data, seed=5))
    assert not torch.equal(first, choose_poisoned(experiment(name="badnets"), data, seed=6))
    assert torch.equal(first, first.unique())


def test_all_to_all_poisons_every_class_and_relabels_to_the_next():
    data = digits()
    made = poisoned(experiment(name="badnets", label_mode="all_to_all", poisoning_rate=0.2), data)
    clean = made.clean_labels[made.is_poisoned]
    assert set(clean.tolist()) == set(range(10))
    assert torch.equal(made.labels[made.is_poisoned], (clean + 1) % 10)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"name": "badnets", "poisoning_rate": 0.1}, 144),
        ({"name": "badnets", "poisoning_rate": 1e-6}, 1),
        ({"name": "sig", "poisoning_rate": 0.1}, 14),
        ({"name": "sig", "poisoning_rate": 1e-6}, 1),
        ({"name": "poison_frogs"}, 1),
    ],
)
def test_rates_round_to_at_least_one_sample(fields, count):
    data, spec = digits(), experiment(**fields)
    assert find_problems(spec, data.facts) == []
    assert poison_count(spec, data.facts) == len(choose_poisoned(spec, data, seed=0)) == count


def test_success_is_measured_without_images_of_the_target_class():
    data = digits()
    spec = experiment(name="badnets", target_class=3)
    test = TestSet.make(data.test, make_attack(spec.attack, data.facts), state_of(spec, data))
    assert test.triggered is not None
    assert test.targets is not None
    assert (data.test.labels[test.origin] != 3).all()
    assert len(test.triggered) == (data.test.labels != 3).sum()
    assert (test.targets == 3).all()


def test_success_of_all_to_all_counts_every_image_towards_the_next_class():
    data = digits()
    spec = experiment(name="badnets", label_mode="all_to_all")
    test = TestSet.make(data.test, make_attack(spec.attack, data.facts), state_of(spec, data))
    assert test.targets is not None
    assert torch.equal(test.targets, (data.test.labels + 1) % 10)


def test_poison_frogs_attacks_one_test_image_and_leaves_it_as_it_is():
    data = digits()
    spec = experiment(name="poison_frogs", target_image=2)
    made = make_attack(spec.attack, data.facts)
    assert made is not None
    images = data.test.images[:4]
    test = TestSet.make(split(images, [5, 6, 7, 8]), made, {"target_image": torch.tensor([2])})
    assert test.triggered is not None
    assert test.origin.tolist() == [2]
    assert torch.equal(test.triggered.images, images[2:3])
    assert test.one_image


def test_poison_frogs_keeps_its_image_where_only_a_part_of_the_test_set_is_measured():
    """A curve looks at 1,000 test images; on a larger test set the attack's own need not be among them."""
    data = digits()
    made = make_attack(experiment(name="poison_frogs").attack, data.facts)
    whole = split(data.test.images[:6], [5, 6, 7, 8, 9, 5])
    state = {"target_image": torch.tensor([5])}
    test = TestSet.make(whole, made, state, torch.tensor([0, 2]))
    assert len(test.clean) == 2
    assert test.triggered is not None
    assert torch.equal(test.triggered.images, data.test.images[5:6])
    assert test.triggered.labels.tolist() == [5]
