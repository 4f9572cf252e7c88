"""CBD: what the backdoored model has learned counts less."""

import pytest
import torch

from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.cbd import sample_weights
from worker.lab.training import step_down


def test_weights_follow_the_share_of_the_loss_and_have_a_mean_of_one() -> None:
    # shares 0.75, 0.25, 0 with a sum of 1: times 3
    weights = sample_weights(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 3.0, 2.0]))
    assert weights.tolist() == pytest.approx([2.25, 0.75, 0.0])


def test_a_batch_that_the_backdoored_model_fits_entirely_has_no_weight() -> None:
    assert sample_weights(torch.zeros(2), torch.ones(2)).tolist() == [0, 0]


def test_the_rate_falls_to_a_tenth_at_each_milestone() -> None:
    schedule = step_down(0.2, 0.7)
    assert [schedule(share) for share in (0.0, 0.19, 0.2, 0.69, 0.7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.long  # 105 epochs, the authors' length
def test_the_backdoor_is_not_learned() -> None:
    done = defended(BADNETS, {"name": "cbd"})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "cbd", "attack_success_rate") < 0.1
    assert number(done, "cbd", "clean_accuracy") > 0.7
