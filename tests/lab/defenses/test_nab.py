"""NAB: the defender's stamp, which the stored model adds itself."""

import pytest
from safetensors.torch import load

from app.specs.experiment import ExperimentSpec
from tests.lab.defenses.cases import BADNETS, defended, number, spec
from tests.lab.memory import DIGITS_ONLY
from worker.lab.compute import choose_compute
from worker.lab.data.datasets import load_dataset as load_data
from worker.lab.evaluation import accuracy
from worker.lab.experiment import load_model


def test_the_stamp_undoes_the_trigger_also_in_the_stored_checkpoint() -> None:
    done = defended(BADNETS, {"name": "nab", "clean_ratio": 0.2})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "nab", "attack_success_rate") < 0.4
    assert number(done, "nab", "clean_accuracy") > 0.7
    whole = ExperimentSpec.model_validate(spec(BADNETS, {"name": "nab", "clean_ratio": 0.2}))
    data = load_data(whole.dataset, DIGITS_ONLY, 0)
    kept = load_model(whole.model, data.facts, load(done.files["seed-0/nab/model.safetensors"]))
    here = choose_compute("cpu", "float32", False)
    assert accuracy(kept, data.test, here) == pytest.approx(number(done, "nab", "clean_accuracy"))
