"""Numbers derived from numbers."""

import pytest

from app.specs.summary import defense_effectiveness, format_interval

UNDEFENDED = {"clean_accuracy": 0.9, "attack_success_rate": 1.0}


@pytest.mark.parametrize(
    ("clean", "attack", "rating"),
    [
        (0.9, 0.0, 1.0),  # removed at no cost
        (0.9, 1.0, 0.5),  # nothing done
        (0.4, 1.0, 0.25),  # only harm
        (0.8, 0.2, 0.85),
        (0.95, 0.0, 1.0),  # a gain of accuracy is no merit of the defense
    ],
)
def test_the_rating_weighs_what_was_removed_against_what_it_cost(
    clean: float, attack: float, rating: float
) -> None:
    after = {"clean_accuracy": clean, "attack_success_rate": attack}
    assert defense_effectiveness(UNDEFENDED, after) == pytest.approx(rating)


def test_without_a_number_there_is_no_rating() -> None:
    assert defense_effectiveness(UNDEFENDED, {"clean_accuracy": 0.9, "attack_success_rate": None}) is None
    assert defense_effectiveness({}, UNDEFENDED) is None


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.90, 0.98, "94.1 ± 4.0"), (None, None, "94.1"), (0.941, 0.941, "94.1 ± 0.0")]
)
def test_an_interval_is_shown_as_half_its_width_in_percent(
    low: float | None, high: float | None, text: str
) -> None:
    assert format_interval(0.941, low, high) == text
