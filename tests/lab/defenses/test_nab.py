"""NAB: the defender's stamp, which the stored model adds itself."""

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from app.specs.defenses.nab import Nab
from app.specs.experiment import ExperimentSpec
from tests.lab.defenses.cases import BADNETS, defended, number, spec
from tests.lab.memory import DIGITS_ONLY, MemoryStore
from worker.lab.compute import choose_compute
from worker.lab.data.datasets import load_dataset as load_data
from worker.lab.defenses import nab
from worker.lab.evaluation import accuracy
from worker.lab.networks.loading import load_model


def test_the_stamp_undoes_the_trigger_also_in_the_stored_checkpoint() -> None:
    done = defended(BADNETS, {"name": "nab", "clean_ratio": 0.2})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "nab", "attack_success_rate") < 0.4
    assert number(done, "nab", "clean_accuracy") > 0.7
    assert 0.3 < number(done, "nab", "pseudo_label_accuracy") <= 1
    whole = ExperimentSpec.model_validate(spec(BADNETS, {"name": "nab", "clean_ratio": 0.2}))
    data = load_data(whole.dataset, DIGITS_ONLY, 0)
    kept = load_model(whole.model, data.facts, load(done.files["seed-0/nab/model.safetensors"]))
    here = choose_compute("cpu", "float32", False)
    assert accuracy(kept, data.test, here) == pytest.approx(number(done, "nab", "clean_accuracy"))


def test_the_authors_preset_stamps_with_the_mean_color_and_lowers_the_rate_twice() -> None:
    spec = Nab.model_validate({"preset": "authors"})
    assert (spec.labelling_learning_rate, spec.stamp_value) == (0.01, None)
    assert [nab.TWO_STEPS(share) for share in (0.0, 0.19, 0.2, 0.59, 0.6)] == [1, 1, 0.1, 0.1, 0.01]
    short = {"isolation_epochs": 1, "labelling_epochs": 1}
    defense = {"name": "nab", "preset": "authors", **short}
    done = defended(BADNETS, defense, epochs=1, store=MemoryStore())
    tensors = load(done.files["seed-0/nab/model.safetensors"])
    assert 0.2 < tensors["stamp_value"][..., 0, 0].item() < 0.5  # digits are mostly black


def test_only_suspects_whose_label_changes_are_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the authors' code: a suspect that keeps its label trains without the stamp."""
    stamped: list[Tensor] = []
    original = nab.stamp_objective

    def objective(is_stamped: Tensor) -> object:
        stamped.append(is_stamped)
        return original(is_stamped)

    monkeypatch.setattr("worker.lab.defenses.nab.stamp_objective", objective)
    monkeypatch.setattr(
        "worker.lab.defenses.nab.relabel_suspects",
        lambda spec, lab, stage, suspects: stage.finish(
            {
                "labels": torch.where(
                    torch.arange(len(suspects)) < 5, (lab.labels[suspects] + 1) % 10, lab.labels[suspects]
                )
            }
        ),
    )
    defense = {"name": "nab", "isolation_epochs": 1, "ranking_window": 1, "isolation_ratio": 0.02}
    defended(BADNETS, defense, epochs=1, store=MemoryStore())
    assert stamped[0].sum() == 5
