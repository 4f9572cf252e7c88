"""D-ST and D-BR: the separation of samples, and what is done with the parts."""

import pytest
import torch
from torch import Tensor, nn

from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab.defenses.cases import BADNETS, defended, number, spec
from worker.lab.defenses.d_br import ascend_on, rows_of_epoch
from worker.lab.defenses.d_st import positives_of, warm_cosine
from worker.lab.defenses.sensitivity import spread_objective, turn_and_shift
from worker.lab.training import Batch

IMAGE = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)


def test_an_image_is_turned_and_then_shifted() -> None:
    still = torch.zeros(1, 2)
    turned = turn_and_shift(IMAGE, torch.tensor([0.25]), still)
    assert turned.tolist() in ([[[[7, 4, 1], [8, 5, 2], [9, 6, 3]]]], [[[[3, 6, 9], [2, 5, 8], [1, 4, 7]]]])
    assert torch.equal(turn_and_shift(IMAGE, torch.tensor([0.5]), still), IMAGE.flip(2, 3))
    right = turn_and_shift(IMAGE, torch.tensor([0.0]), torch.tensor([[0.3, 0.0]]))
    assert right.tolist() == [[[[0, 1, 2], [0, 4, 5], [0, 7, 8]]]]
    both = turn_and_shift(IMAGE, torch.tensor([0.5]), torch.tensor([[0.0, 0.3]]))
    assert both.tolist() == [[[[0, 0, 0], [9, 8, 7], [6, 5, 4]]]]


class Features(nn.Module):
    """A network whose features are the image's values."""

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_centers_of_classes_are_moved_apart() -> None:
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).view(3, 1, 1, 2)
    batch = Batch(x, torch.tensor([0, 0, 2]), torch.arange(3), torch.Generator())
    # Two of four classes are there; their centers enclose 45 degrees; the mean counts all 2 x 2 places.
    loss = spread_objective(4)(Features(), batch)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(2 * 0.5**0.5 / 4)


def test_positives_of_a_clean_sample_are_those_of_its_label() -> None:
    batch = Batch(
        torch.zeros(3, 1, 1, 1), torch.tensor([1, 1, 0]), torch.tensor([5, 6, 7]), torch.Generator()
    )
    clean = torch.arange(8) == 5
    assert positives_of(clean)(batch).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]


def test_the_rate_of_the_features_rises_for_ten_epochs_and_then_falls() -> None:
    schedule = warm_cosine(200, 0.5)
    assert schedule(0.0) == pytest.approx(0.02)
    assert schedule(0.05) == pytest.approx(0.001 + 0.999 * 0.9938, rel=1e-3)
    assert schedule(0.025) == pytest.approx((schedule(0.0) + schedule(0.05)) / 2)
    assert schedule(1.0) == pytest.approx(0.001)


def test_d_br_unlearns_in_odd_epochs_and_relearns_in_even_ones() -> None:
    clean, poisoned = torch.tensor([True, False, False, True]), torch.tensor([False, True, False, False])
    assert [rows_of_epoch(epoch, clean, poisoned).tolist() for epoch in (1, 2, 3)] == [[1], [0, 3], [1]]
    assert rows_of_epoch(2, clean, poisoned, least=5).tolist() == [0, 3, 0, 3, 0, 3]
    loss = ascend_on(poisoned)
    assert loss(torch.tensor([2.0, 4.0]), torch.tensor([1, 1])).item() == -3
    assert loss(torch.tensor([2.0, 4.0]), torch.tensor([0, 3])).item() == 3


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"suspected_ratio": 0.001}, "suspected_ratio"),
        ({"trusted_ratio": 0.02}, "trusted_ratio"),
        ({"trusted_ratio": 0.97}, "suspected_ratio"),
    ],
)
def test_a_set_that_cannot_be_separated_is_refused(fields: dict[str, float], refused: str) -> None:
    whole = spec(BADNETS, {"name": "d_st", **fields}) | {"dataset": {"name": "digits", "train_size": 200}}
    problems = find_problems(ExperimentSpec.model_validate(whole), BUILT_IN["digits"])
    assert [problem.field for problem in problems] == [f"defenses.0.{refused}"]


@pytest.mark.long  # 72 epochs, the unlearning ones of 20 steps and more
def test_d_br_removes_the_backdoor() -> None:
    done = defended(BADNETS, {"name": "d_br"})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "d_br", "attack_success_before_unlearning") > 0.95
    assert number(done, "d_br", "attack_success_rate") < 0.1
    assert number(done, "d_br", "clean_accuracy") > 0.85
    assert number(done, "d_br", "isolation_precision") > 0.3  # a tenth is poisoned
