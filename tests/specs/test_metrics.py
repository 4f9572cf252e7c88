"""Metrics derived from other metrics."""

import pytest

from app.specs.metrics import defense_effectiveness, format_interval

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


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.90, 0.98, "94.1 ± 4.0"), (None, None, "94.1"), (0.941, 0.941, "94.1 ± 0.0")]
)
def test_an_interval_is_shown_as_half_its_width_in_percent(
    low: float | None, high: float | None, text: str
) -> None:
    assert format_interval(0.941, low, high) == text
