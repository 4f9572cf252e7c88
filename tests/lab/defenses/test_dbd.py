"""DBD: the schedule of its features, and that it does not learn the backdoor."""

import pytest

from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.dbd import part_of_cosine


def test_a_part_of_a_schedule_hardly_falls() -> None:
    tenth, whole = part_of_cosine(0.1), part_of_cosine(1.0)
    assert [whole(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert tenth(1) == pytest.approx(whole(0.1)) == pytest.approx(0.9755, abs=1e-4)


@pytest.mark.long  # 210 epochs, half a minute on an idle core
@pytest.mark.timeout(1200)
def test_the_backdoor_is_not_learned() -> None:
    done = defended(BADNETS, {"name": "dbd"}, epochs=5)
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "dbd", "attack_success_rate") < 0.1
    assert number(done, "dbd", "clean_accuracy") > 0.6
    assert number(done, "dbd", "isolation_recall") > 0.9
