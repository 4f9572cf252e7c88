"""Metrics on hand-made cases, data and augmentation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.specs.attack import BadNets
from app.specs.dataset import Digits
from app.specs.facts import BUILT_IN
from tests.lab.memory import DIGITS_ONLY
from worker.lab.attacks import make_attack
from worker.lab.compute import choose_compute, derive_seed, seeded_generator
from worker.lab.contracts import DatasetMissingError, NonFiniteLossError
from worker.lab.data import datasets
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import Split, load_dataset
from worker.lab.evaluation import TestSet, auroc, class_quality, evaluate, isolation_quality, predict_logits
from worker.lab.networks import build_network

CPU = choose_compute("cpu", "float32", compile=False)


class Oracle(nn.Module):
    """Answers with the value of the first pixel, or with the target if the corner is white."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        pixels = (x * 255).round().long()
        answer = torch.where(pixels[:, 0, -1, -1] == 255, self.target, pixels[:, 0, 0, 0])
        return torch.nn.functional.one_hot(answer, 10).float() * 20


def _test_set(target: int) -> TestSet:
    labels = torch.arange(10)
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    attack = make_attack(BadNets(target_class=target, pattern="white", size=1), BUILT_IN["digits"])
    return TestSet.make(Split(images, labels), attack, {})


def test_attack_success_leaves_the_target_class_out() -> None:
    test = _test_set(target=3)
    assert test.triggered is not None
    assert len(test.triggered) == 9
    assert 3 not in test.triggered.labels
    values = evaluate(Oracle(3), test, CPU)  # type: ignore[arg-type]
    assert values["clean_accuracy"] == 1.0
    assert values["attack_success_rate"] == 1.0
    assert values["robust_accuracy"] == 0.0
    robust = evaluate(Oracle(4), test, CPU)  # type: ignore[arg-type]
    assert robust["attack_success_rate"] == 0.0
    assert robust["robust_accuracy"] == pytest.approx(1 / 9)  # only the image of class 4 gets its own label


def test_without_an_attack_its_numbers_are_missing_not_zero() -> None:
    values = evaluate(Oracle(3), TestSet.make(_test_set(3).clean, None, {}), CPU)  # type: ignore[arg-type]
    assert values["attack_success_rate"] is None
    assert values["robust_accuracy"] is None


def test_no_metric_comes_from_logits_that_are_not_finite() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), math.nan)  # its argmax would be class 0, a favorite target

    with pytest.raises(NonFiniteLossError, match="not finite"):
        predict_logits(Broken(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), CPU)  # type: ignore[arg-type]


def test_auroc_counts_ties_half() -> None:
    positive = torch.tensor([True, True, False, False])
    assert auroc(torch.tensor([3.0, 2.0, 1.0, 0.0]), positive) == 1.0
    assert auroc(torch.tensor([0.0, 1.0, 2.0, 3.0]), positive) == 0.0
    assert auroc(torch.tensor([1.0, 1.0, 1.0, 1.0]), positive) == 0.5
    assert auroc(torch.tensor([2.0, 1.0, 1.0, 0.0]), positive) == pytest.approx(3.5 / 4)


def test_detections_are_counted_also_on_clean_data() -> None:
    suspicion, isolated = torch.tensor([0.9, 0.8, 0.1, 0.2]), torch.tensor([0, 1])
    truth = torch.tensor([True, False, False, False])
    counts = {"true_positives": 1, "false_positives": 1, "true_negatives": 2, "false_negatives": 0}
    assert isolation_quality(suspicion, isolated, truth) == {
        "isolation_precision": 0.5,
        "isolation_recall": 1.0,
        "isolation_auroc": 1.0,
        "false_positive_rate": pytest.approx(1 / 3),
        **counts,
    }
    assert isolation_quality(suspicion, isolated, torch.zeros(4, dtype=torch.bool)) == {
        "true_positives": 0,
        "false_positives": 2,
        "true_negatives": 2,
        "false_negatives": 0,
        "false_positive_rate": 0.5,
    }


def test_a_detection_is_also_measured_within_the_target_class() -> None:
    suspicion, isolated = torch.tensor([0.9, 0.8, 0.1, 0.95]), torch.tensor([0, 1, 3])
    truth, labels = torch.tensor([True, False, False, False]), torch.tensor([4, 4, 4, 7])
    values = isolation_quality(suspicion, isolated, truth, labels)
    assert values["isolation_precision"] == pytest.approx(1 / 3)
    assert values["target_class_precision"] == 0.5
    assert values["isolation_auroc"] == pytest.approx(2 / 3)
    assert values["target_class_auroc"] == 1.0


def test_a_named_class_is_compared_with_the_target() -> None:
    flagged = torch.tensor([True, False, True])
    assert class_quality(flagged, torch.tensor([2])) == {
        "target_class_found": 1.0,
        "wrong_classes_flagged": 1,
    }
    assert class_quality(flagged, torch.tensor([1])) == {
        "target_class_found": 0.0,
        "wrong_classes_flagged": 2,
    }
    assert class_quality(flagged, torch.empty(0, dtype=torch.int64)) == {"wrong_classes_flagged": 2}


def test_digits_have_a_fixed_balanced_split() -> None:
    data = load_dataset(Digits(), DIGITS_ONLY, seed=0)
    assert torch.bincount(data.train.labels).tolist() == list(data.facts.train_counts)
    assert torch.bincount(data.test.labels).tolist() == list(data.facts.test_counts)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.max() == 255
    other = load_dataset(Digits(), DIGITS_ONLY, seed=1)
    assert torch.equal(
        other.test.images, data.test.images
    )  # the seed moves no image between training and test


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits  # noqa: PLC0415  # takes seconds, in each process that collects this file

    data, source = load_dataset(Digits(), DIGITS_ONLY, seed=0), load_digits()
    theirs = zip((source.images * 15.9375).round().astype(np.uint8), source.target, strict=True)
    ours = (
        pair for split in (data.train, data.test) for pair in zip(split.images, split.labels, strict=True)
    )
    assert sorted((image.numpy().tobytes(), int(label)) for image, label in ours) == sorted(
        (image.tobytes(), int(label)) for image, label in theirs
    )


def test_digits_without_scikit_learn_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "find_spec", lambda _: None)
    with pytest.raises(DatasetMissingError, match="pip install scikit-learn"):
        datasets._digits.__wrapped__()


def test_a_subset_keeps_class_proportions_and_follows_the_seed() -> None:
    spec = Digits(train_size=100, test_size=50)
    first, again, other = (load_dataset(spec, DIGITS_ONLY, seed) for seed in (0, 0, 1))
    assert torch.bincount(first.train.labels).tolist() == list(first.facts.train_counts)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)


def test_a_missing_data_set_names_the_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from app.specs.dataset import Cifar10  # noqa: PLC0415

    with pytest.raises(DatasetMissingError, match="bdlab data fetch cifar10"):
        load_dataset(Cifar10(), tmp_path, seed=0)


def test_crop_and_flip_are_drawn_for_every_image() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    changed = Augment(crop_padding=1, flip=True)(image, seeded_generator(CPU.device, "test"))
    kinds = {bytes(x.flatten().tolist()) for x in changed}
    assert len(kinds) == 18  # 3 x 3 shifts, mirrored or not
    assert torch.equal(Augment()(image, seeded_generator(CPU.device, "test")), image)


def test_a_crop_is_a_shift_with_zeros() -> None:
    image = torch.full((50, 1, 4, 4), 9, dtype=torch.uint8)
    changed = Augment(crop_padding=1)(image, seeded_generator(CPU.device, "shift"))
    for picture in changed[:, 0]:
        rows, columns = (picture != 0).any(1), (picture != 0).any(0)
        assert rows.sum() >= 3
        assert (picture == 9).sum() == rows.sum() * columns.sum()


def test_cutout_makes_one_hole() -> None:
    image = torch.full((100, 3, 8, 8), 9, dtype=torch.uint8)
    holes = (Augment(cutout=3)(image, seeded_generator(CPU.device, "cut")) == 0)[:, 0].flatten(1).sum(1)
    assert holes.max() == 9
    assert holes.min() >= 1  # a hole at the edge is smaller, but never outside


def test_weights_and_streams_follow_from_their_seed_alone() -> None:
    from app.specs.model import SmallCnn  # noqa: PLC0415

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = (build_network(SmallCnn(), BUILT_IN["digits"], "x") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is left alone
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert derive_seed("a", 1) != derive_seed("a1") != derive_seed("a", "1", "")
