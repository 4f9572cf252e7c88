"""Victims that are fine-tuned from the attacker's surrogate, on digits."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from app.specs.base import digest
from app.specs.checks import find_problems, find_victim_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.stages import plan
from app.specs.training import TrainingSpec
from tests.lab.attacks.helpers import attack as make
from tests.lab.attacks.helpers import facts
from tests.lab.memory import MemoryRecorder, MemoryStore, experiment
from worker.lab.attacks.hidden_trigger import pair_greedily
from worker.lab.contracts import CanceledError
from worker.lab.stages import Outcome

HIDDEN = {
    "name": "hidden_trigger",
    "target_class": 2,
    "source_class": 3,
    "surrogate_epochs": 2,
    "craft_steps": 3,
}
FROGS = {"name": "poison_frogs", "poisoning_rate": 0.2, "surrogate_epochs": 2, "craft_steps": 5}


def tuned(attack: dict[str, Any], fine_tuning: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "digits", "train_size": 200, "test_size": 100},
        "model": {"name": "small_cnn", "width": 4},
        "attack": attack,
        "reference": True,
        "training": {
            "epochs": 2,
            "batch_size": 50,
            "start": "surrogate",
            "fine_tuning": {"epochs": 2, "learning_rate": 0.1} | (fine_tuning or {}),
        },
    } | more


def networks(recorder: MemoryRecorder) -> dict[str, dict[str, torch.Tensor]]:
    return {arm: load(recorder.files[f"seed-0/{arm}/model.safetensors"]) for arm in ("clean", "undefended")}


def stored(spec: dict[str, Any], store: MemoryStore, kind: str) -> dict[str, torch.Tensor]:
    stages = plan(ExperimentSpec.model_validate(spec))
    return Outcome.loads(store.stages[next(s.key for s in stages if s.kind == kind)]).tensors


def test_a_trained_head_leaves_every_other_tensor_of_the_surrogate_as_it_is():
    store, spec = MemoryStore(), tuned(HIDDEN)
    victims = networks(experiment(spec, store=store))
    surrogate = stored(spec, store, "surrogate")
    for tensors in victims.values():
        different = {name for name in surrogate if not torch.equal(tensors[name], surrogate[name])}
        assert different == {"head.weight", "head.bias"}
    assert not torch.equal(victims["clean"]["head.weight"], victims["undefended"]["head.weight"])


@pytest.mark.parametrize("new_head", [True, False])
def test_both_arms_start_from_the_same_weights(new_head):
    # A step length of nearly zero leaves what they start from.
    still = {"trained_layers": "all", "new_head": new_head, "epochs": 1, "learning_rate": 1e-12}
    store, spec = MemoryStore(), tuned(FROGS, still)
    victims = networks(experiment(spec, store=store))
    surrogate = stored(spec, store, "surrogate")
    for name, tensor in victims["clean"].items():
        if "running" in name or "num_batches" in name:
            continue
        assert torch.allclose(tensor, victims["undefended"][name], atol=1e-6)
        of_surrogate = torch.allclose(tensor, surrogate[name], atol=1e-6)
        assert of_surrogate == (not name.startswith("head") or not new_head)


def test_all_layers_are_trained_if_the_spec_says_so():
    store, spec = MemoryStore(), tuned(FROGS, {"trained_layers": "all"})
    victims = networks(experiment(spec, store=store))
    surrogate = stored(spec, store, "surrogate")
    assert not torch.equal(victims["clean"]["blocks.0.0.weight"], surrogate["blocks.0.0.weight"])


def test_the_surrogates_clean_accuracy_is_recorded():
    points = experiment(tuned(FROGS)).points
    assert set(points["attack", 0, "clean_accuracy"]) == {1, 2}


def problems(**spec: Any) -> list[str]:
    return [p.field for p in find_problems(ExperimentSpec.model_validate(spec), BUILT_IN["digits"])]


def test_contradictions_are_refused_with_the_field():
    start = {"start": "surrogate"}
    assert problems(attack={"name": "badnets"}, training=start) == ["training.start"]
    assert problems(attack={"name": "none"}, training=start) == ["training.start"]
    assert problems(attack={"name": "trojan"}, training=start) == []
    victim = {"model_id": "00000000-0000-0000-0000-000000000000"}
    frogs = {"name": "poison_frogs"}
    assert problems(attack=frogs, training=start, victim=victim) == ["training.start"]
    assert problems(attack=frogs, training={"fine_tuning": {}}) == ["training.fine_tuning"]
    spec = ExperimentSpec.model_validate({"attack": frogs, "training": start})
    of_digits = BUILT_IN["digits"]
    found = find_victim_problems(spec, spec.model, of_digits.shape, False, of_digits)
    assert [p.field for p in found] == ["training.start"]
    for source in (2, 10):
        hidden = {"name": "hidden_trigger", "target_class": 2, "source_class": source}
        assert problems(attack=hidden) == ["attack.source_class"]
    assert problems(attack={"name": "hidden_trigger", "size": 6, "margin": 1}) == []
    assert problems(attack={"name": "hidden_trigger", "size": 6, "margin": 2}) == ["attack.size"]


def test_specs_without_fine_tuning_keep_their_form_and_the_stages_that_it_does_not_affect_keep_their_keys():
    assert not {"start", "fine_tuning"} & set(TrainingSpec().model_dump(mode="json"))
    base = {"attack": FROGS, "reference": True, "defenses": [{"name": "abl"}, {"name": "fine_tuning"}]}
    start = {"start": "surrogate"}
    scratch, fine, other = (
        {(s.kind, s.arm): s.key for s in plan(ExperimentSpec.model_validate(base | {"training": training}))}
        for training in ({}, start, start | {"fine_tuning": {"epochs": 3}})
    )
    changed = {key for key in scratch if scratch[key] != fine[key]}
    assert changed == {("victim", "clean"), ("victim", "undefended"), ("repair", "fine_tuning")}
    assert changed == {key for key in fine if fine[key] != other[key]}
    one, two = (
        {"attack": FROGS | {"surrogate_epochs": n}, "training": start, "reference": True} for n in (2, 3)
    )
    keys = [
        [s.key for s in plan(ExperimentSpec.model_validate(spec)) if s.arm == "clean"] for spec in (one, two)
    ]
    assert keys[0] != keys[1]  # the clean arm depends on the surrogate


def test_the_canonical_form_of_a_fine_tuned_victim_lists_its_fields():
    spec = TrainingSpec.model_validate({"start": "surrogate"})
    assert spec.fine_tuning is not None
    assert TrainingSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert digest(spec.model_dump(mode="json")) != digest(TrainingSpec().model_dump(mode="json"))


@pytest.mark.parametrize("attack", [HIDDEN, FROGS], ids=lambda a: a["name"])
def test_runs_are_deterministic_also_if_they_are_interrupted(attack):
    whole = experiment(tuned(attack))
    again = experiment(tuned(attack))
    batches = 0

    def count() -> None:
        nonlocal batches
        batches += 1

    experiment(tuned(attack), MemoryRecorder(count))
    for stop in (batches // 2, batches - 5):
        left, store = stop, MemoryStore()

        def tick() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise CanceledError("stopped")

        with pytest.raises(CanceledError):
            experiment(tuned(attack), MemoryRecorder(tick), store)
        resumed = experiment(tuned(attack), store=store)
        for arm, tensors in networks(whole).items():
            for name, tensor in tensors.items():
                assert torch.equal(tensor, networks(again)[arm][name])
                assert torch.equal(tensor, networks(resumed)[arm][name])


def test_hidden_triggers_poisons_are_appended_and_success_is_measured_on_the_source_class():
    recorder = experiment(tuned(HIDDEN | {"export": True}))
    set_ = np.load(io.BytesIO(recorder.files["seed-0/poisoned_train.npz"]))
    poisons = set_["is_poisoned"]
    assert len(poisons) == 200 + poisons.sum()
    assert poisons[200:].all()
    assert (set_["y_train"][poisons] == 2).all()
    assert (set_["clean_labels"][poisons] == 2).all()
    indices = json.loads(recorder.files["seed-0/poisoned_indices.json"])
    assert indices["indices"] == list(range(200, len(poisons)))
    stealth = json.loads(recorder.files["seed-0/stealth.json"])
    assert stealth["poisoned_training_images"]["l_inf"] <= 16  # compared with the images they were made from
    asr = recorder.results["undefended", 0]["attack_success_rate"]
    assert asr is not None
    sources = 10  # test images of class 3 in the subset
    assert asr * sources == pytest.approx(round(asr * sources))


def test_replaced_poisons_keep_the_size_of_the_set():
    recorder = experiment(tuned(HIDDEN | {"append": False, "export": True}))
    set_ = np.load(io.BytesIO(recorder.files["seed-0/poisoned_train.npz"]))
    assert len(set_["is_poisoned"]) == 200


def test_only_test_images_of_the_source_class_are_attacked():
    from worker.lab.data.datasets import Split  # noqa: PLC0415

    test = Split(torch.zeros((5, 1, 4, 4), dtype=torch.uint8), torch.tensor([0, 1, 2, 1, 3]))
    one = make(facts(), name="hidden_trigger", source_class=1)
    every = make(facts(), name="hidden_trigger")
    assert one.attacked(test, {}).tolist() == [1, 3]
    assert every.attacked(test, {}).tolist() == [1, 2, 3, 4]


def test_a_patch_at_a_random_place_covers_one_square_that_follows_from_the_image_and_the_seed():
    of = facts(channels=3, height=12, width=16)
    made = make(of, name="hidden_trigger", size=4, margin=1)
    patch = torch.arange(1, 49, dtype=torch.uint8).reshape(3, 4, 4)
    images = torch.randint(100, 255, (300, 3, 12, 16), dtype=torch.uint8)
    places = []
    for seed in (5, 6):
        stamp = made.trigger({"patch": patch, "places": torch.tensor([seed])})
        stamped = stamp(images)
        assert torch.equal(stamped, stamp(images))
        assert torch.equal(stamped[7:9], stamp(images[7:9]))  # independent of the other images
        seen = []
        for image, original in zip(stamped, images, strict=True):
            row, column = (image != original).any(0).nonzero().amin(0).tolist()
            assert torch.equal(image[:, row : row + 4, column : column + 4], patch)
            assert (image != original).sum() == patch.numel()
            seen.append((row, column))
        assert {r for r, _ in seen} == set(range(1, 8))  # margin 1: rows 1 to 7, columns 1 to 11
        assert {c for _, c in seen} == set(range(1, 12))
        places.append(seen)
    assert places[0] != places[1]


def test_pairs_are_those_of_the_globally_closest_first():
    distances = torch.rand((30, 30), generator=torch.Generator().manual_seed(0))
    remaining, expected = distances.clone(), [0] * 30
    for _ in range(30):
        row, column = divmod(int(remaining.argmin()), 30)
        expected[row] = column
        remaining[row, :], remaining[:, column] = 9.0, 9.0
    assert pair_greedily(distances).tolist() == expected
    assert sorted(pair_greedily(torch.zeros((4, 4))).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("rate", [0.01, 1.96, 1000])
def test_poison_frogs_approaches_the_target_at_any_first_step_length(rate):
    attack = FROGS | {"craft_learning_rate": rate, "craft_steps": 40, "craft_similarity": 0}
    points = experiment(tuned(attack)).points
    before = points["attack", 0, "initial_feature_distance"][3]
    after = points["attack", 0, "feature_distance"][3]
    assert after < before


def test_poison_frogs_warns_if_the_poisons_came_no_closer():
    recorder = experiment(tuned(FROGS | {"watermark": 0, "craft_similarity": 1e6}))
    assert any("not closer to the target image" in warning for warning in recorder.warnings)
