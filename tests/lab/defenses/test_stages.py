"""Stages of repair and detection: shared where possible, resumed after an interruption."""

import pytest

from app.specs.experiment import ExperimentSpec
from app.specs.stages import plan
from tests.lab.defenses.cases import ALL, BADNETS, NOTHING, SHORT, STORE, Spec, spec
from tests.lab.memory import MemoryRecorder, MemoryStore, experiment
from worker.lab.contracts import CanceledError

EPOCHS = 3
FEW = {"dataset": {"name": "digits", "train_size": 600}}


def keys(whole: Spec) -> dict[tuple[str | None, str], str]:
    return {(stage.arm, stage.kind): stage.key for stage in plan(ExperimentSpec.model_validate(whole))}


@pytest.mark.parametrize("attack", [BADNETS, NOTHING])
def test_keys_of_repair_and_detection_depend_on_the_victim(attack: Spec) -> None:
    """On its recipe and on the attack, but not on other defenses."""
    victim = "clean" if attack == NOTHING else "undefended"
    plain = keys(spec(attack, *ALL, epochs=EPOCHS))
    other = keys(spec(attack, *ALL, epochs=EPOCHS + 1))
    alone = keys(spec(attack, {"name": "anp", **SHORT["anp"]}, epochs=EPOCHS))
    assert plain[victim, "victim"] != other[victim, "victim"]
    for arm in ("anp", "strip", "nab"):
        changed = [plain[key] != other[key] for key in plain if key[0] == arm]
        assert changed
        assert all(changed)
    assert alone.items() <= plain.items()


def test_variants_share_equal_stages() -> None:
    """Two distillations share their teacher; defenses with clean sets of different sizes share nothing."""
    nad = {"name": "nad", "teacher_steps": 4, "steps": 4}
    nad_keys = keys(
        spec(BADNETS, nad, {**nad, "arm": "other", "steps": 8}, {**nad, "arm": "more", "clean_ratio": 0.1})
    )
    assert nad_keys["nad", "teacher"] == nad_keys["other", "teacher"] != nad_keys["more", "teacher"]
    assert nad_keys["nad", "repair"] != nad_keys["other", "repair"]
    strip = keys(spec(BADNETS, {"name": "strip"}, {"name": "strip", "arm": "look", "then": "nothing"}))
    assert strip["strip", "detection"] == strip["look", "detection"]
    assert ("look", "retrain") not in strip


@pytest.mark.parametrize("attack", [BADNETS, NOTHING])
def test_a_training_defense_shares_the_undefended_model_trained_from_scratch(attack: Spec) -> None:
    victim = "clean" if attack == NOTHING else "undefended"
    plain = spec(attack, {"name": "abl_plus"})
    of_arms = keys(plain)
    assert of_arms["abl_plus", "victim"] == of_arms[victim, "victim"]
    longer = keys(spec(attack, {"name": "abl_plus"}, epochs=EPOCHS))
    assert of_arms["abl_plus", "signs"] != longer["abl_plus", "signs"]
    of_a_file = {
        (stage.arm, stage.kind): stage.key for stage in plan(ExperimentSpec.model_validate(plain), "", "f0")
    }
    assert of_arms["abl_plus", "victim"] != of_a_file["abl_plus", "victim"] != of_a_file[victim, "victim"]


def test_a_training_defense_does_not_start_from_the_surrogate() -> None:
    attack = {"name": "hidden_trigger", "surrogate_epochs": 1}
    scratch, tuned = (
        keys(spec(attack, {"name": "abl_plus"}) | {"training": training})
        for training in ({"epochs": 2}, {"epochs": 2, "start": "surrogate"})
    )
    assert scratch["abl_plus", "victim"] == tuned["abl_plus", "victim"] == scratch["undefended", "victim"]
    assert tuned["abl_plus", "victim"] != tuned["undefended", "victim"]


@pytest.mark.parametrize(
    "name",
    [
        *("ft_sam", "mcr", "anp", "rnp", "i_bau", "neural_cleanse", "nab", "asset", "meta_sift"),
        *("confusion_training", "dbd", "asd", "vab"),
    ],
)
def test_an_interrupted_run_ends_in_the_same_numbers(name: str) -> None:
    """Also where Adam's moments, masks, a perturbation or trigger costs are kept between epochs."""
    longer = {
        "i_bau": {"rounds": 3, "steps": 12},
        "asset": {"steps": 6},
        "meta_sift": {"sifters": 1, "warm_up_steps": 6, "steps": 6},
        "confusion_training": {"epochs": 2, "confusion_steps": 10, "batch_size": 128, "then": "nothing"},
    }
    fields = SHORT[name] | longer.get(name, {})
    whole = spec(BADNETS, {"name": name, **fields}, epochs=EPOCHS) | FEW
    expected = experiment(whole, store=STORE, checkpoint_seconds=1e9)
    victim_key = keys(whole)["undefended", "victim"]
    store = MemoryStore()
    store.stages[victim_key] = STORE.stages[victim_key]

    def stop() -> None:
        if any(data for data in store.checkpoints.values()):
            raise CanceledError("stopped by the test")

    with pytest.raises(CanceledError):
        experiment(whole, MemoryRecorder(stop), store)
    assert store.checkpoints
    resumed = experiment(whole, store=store)
    assert any("resumed from a checkpoint" in line for line in resumed.lines)
    measured = ("clean_accuracy", "clean_loss", "poisoned_loss")
    for metric in measured:
        assert resumed.results[name, 0][metric] == expected.results[name, 0][metric]
    assert resumed.points[name, 0, "train_loss"] == expected.points[name, 0, "train_loss"]
