"""Metrics derived from other metrics."""

import pytest

from app.specs.metrics import defense_effectiveness

UNDEFENDED = {"clean_accuracy": 0.9, "attack_success_rate": 1.0}


@pytest.mark.parametrize(
    ("clean", "attack", "rating"),
    [
        (0.9, 0.0, 1.0),  # removed at no cost
        (0.9, 1.0, 0.5),  # no effect
        (0.4, 1.0, 0.25),  # only a loss of accuracy
        (0.8, 0.2, 0.85),
        (0.95, 0.0, 1.0),  # a gain in accuracy does not count
    ],
)
def test_the_rating_weighs_the_drop_of_both_rates(clean: float, attack: float, rating: float) -> None:
    after = {"clean_accuracy": clean, "attack_success_rate": attack}
    assert defense_effectiveness(UNDEFENDED, after) == pytest.approx(rating)


def test_a_missing_metric_gives_no_rating() -> None:
    assert defense_effectiveness(UNDEFENDED, {"clean_accuracy": 0.9, "attack_success_rate": None}) is None
    assert defense_effectiveness({}, UNDEFENDED) is None
