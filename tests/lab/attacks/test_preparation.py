"""Attacks with a preparation, end to end on a few digits."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app.specs.experiment import ExperimentSpec
from app.specs.metrics import OF_ATTACKER
from tests.lab.attacks.helpers import digits, run_in
from worker.lab.attacks import input_aware
from worker.lab.attacks.encoder_decoder import EncoderDecoder
from worker.lab.attacks.hidden_trigger import pair_greedily
from worker.lab.attacks.input_aware import diversity_loss, harden_mask
from worker.lab.attacks.surrogate import pgd, quantize_within
from worker.lab.contracts import CanceledError, SpecError
from worker.lab.experiment import run_experiment
from worker.lab.interactive import predict, preview
from worker.lab.local import FolderRecorder, FolderStore
from worker.lab.networks import build_network

QUICK = {"surrogate_epochs": 2}
INPUT_AWARE = {"name": "input_aware", "mask_epochs": 2, "generator_epochs": 2}


def linear_model(weights):
    """A network whose logits are ``x . weights`` for the first of two classes and zero for the second."""

    class Linear(torch.nn.Module):
        def forward(self, x):
            first = (x * weights).flatten(1).sum(1)
            return torch.stack([first, torch.zeros_like(first)], 1)

    return Linear()


def test_pgd_goes_to_the_bounds_corner_in_the_maximum_norm():
    weights = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]])
    x = torch.full((2, 1, 2, 2), 0.5)
    moved = pgd(
        linear_model(weights),
        x,
        torch.tensor([0, 1]),
        "l_inf",
        0.1,
        0.05,
        20,
        torch.Generator().manual_seed(0),
    )
    expected = 0.5 + 0.1 * torch.stack([-weights.sign(), weights.sign()])  # away from the label
    assert torch.allclose(moved, expected)


def test_pgd_goes_along_the_gradient_in_the_euclidean_norm():
    weights = torch.tensor([[[3.0, 0.0], [-4.0, 0.0]]])
    x = torch.full((1, 1, 2, 2), 0.5)
    moved = pgd(
        linear_model(weights), x, torch.tensor([0]), "l_2", 0.2, 0.1, 100, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(moved - x, -0.2 * weights / 5, atol=2e-3)


def test_pgd_stays_within_bound_and_range_on_a_real_network():
    data = digits()
    network = build_network(ExperimentSpec().model, data.facts, 0)
    x = data.train.images[:20].float() / 255
    for norm, epsilon in (("l_inf", 8 / 255), ("l_2", 0.5)):
        generator = torch.Generator().manual_seed(1)
        moved = pgd(network, x, data.train.labels[:20], norm, epsilon, epsilon / 4, 8, generator)
        change = (moved - x).flatten(1)
        length = change.abs().amax(1) if norm == "l_inf" else change.norm(dim=1)
        assert length.max() <= epsilon + 1e-6
        assert length.min() > epsilon / 10
        assert moved.min() >= 0
        assert moved.max() <= 1


def test_rounding_to_uint8_keeps_within_the_bound():
    images = torch.tensor([[0, 100, 255]], dtype=torch.uint8)
    assert quantize_within(torch.tensor([[0.9, 0.45, 1.2]]), images, 8.0).tolist() == [[8, 108, 255]]
    assert quantize_within(torch.tensor([[-0.1, 0.3, 0.5]]), images, 8.0).tolist() == [[0, 92, 247]]


def test_pairing_is_one_to_one_and_closest_first():
    assert pair_greedily(torch.tensor([[1.0, 5.0], [0.5, 9.0]])).tolist() == [1, 0]


def test_equal_patterns_give_a_finite_loss_and_finite_gradients():
    x1, x2 = torch.rand((4, 1, 8, 8)), torch.rand((4, 1, 8, 8))
    same = torch.full((4, 3, 8, 8), 0.5, requires_grad=True)
    loss = diversity_loss(x1, x2, same, same * 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()
    apart = diversity_loss(x1, x2, torch.zeros((4, 3, 8, 8)), torch.ones((4, 3, 8, 8)))
    assert apart == pytest.approx(float((x1 - x2).square().mean((1, 2, 3)).sqrt().mean()), rel=1e-3)
    assert loss > 100 * apart  # equal patterns are penalized


def test_a_hardened_mask_is_nearly_binary():
    assert harden_mask(torch.tensor([0.3, 0.5, 0.7])).tolist() == pytest.approx(
        [0.0003, 0.5, 0.9997], abs=1e-3
    )


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 30)])
def test_encoder_and_decoder_keep_the_size(channels, side):
    network = EncoderDecoder(channels, 3, side).eval()
    made = network(torch.rand((2, channels, side, side)))
    assert made.shape == (2, 3, side, side)
    assert made.min() >= 0
    assert made.max() <= 1


def test_encoder_and_decoder_average_batches_and_scale_as_published(monkeypatch):
    network = EncoderDecoder(3, 1, 32)
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(norms) == 13
    assert {layer.momentum for layer in norms} == {0.05}
    aligned = []
    interpolate = torch.nn.functional.interpolate

    def observed(*given, **named):
        aligned.append(named["align_corners"])
        return interpolate(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "interpolate", observed)
    network(torch.rand((2, 3, 32, 32)))
    assert aligned == [False] * 3


def test_the_masks_diversity_is_measured_on_images_of_deviation_one(tmp_path, monkeypatch):
    seen = []

    def observed(x1, x2, made1, made2):
        seen.append((made1.shape[1:], len(made1), x1.std().item()))
        return diversity_loss(x1, x2, made1, made2)

    monkeypatch.setattr(input_aware, "diversity_loss", observed)
    run_in(tmp_path, INPUT_AWARE | {"mask_epochs": 1, "generator_epochs": 1})
    masks = [deviation for _, samples, deviation in seen if samples == 50]
    assert len(masks) == 6  # batches of the mask stage; the generator's have 5 triggered images
    assert masks == pytest.approx([1] * 6, abs=0.1)  # digits have a deviation of 0.38 on [0, 1]


def only_arm(results, name="undefended"):
    return next(arm for arm in results["arms"] if arm["arm"] == name)["seeds"][0]


CLEAN_LABEL = [
    {"name": "clean_label", "size": 2, "pgd_steps": 5, "surrogate_steps": 2} | QUICK,
    {"name": "clean_label", "size": 2, "pgd_norm": "l_2", "pgd_epsilon": 300, "pgd_steps": 5}
    | {"surrogate_adversarial": False}
    | QUICK,
    {"name": "hidden_trigger", "craft_steps": 5, "append": False} | QUICK,
    {"name": "poison_frogs", "poisoning_rate": 0.5, "craft_steps": 5} | QUICK,
    {"name": "narcissus", "poisoning_rate": 0.02, "pattern_steps": 40} | QUICK,
]


@pytest.mark.parametrize("attack", CLEAN_LABEL, ids=lambda a: f"{a['name']}-{a.get('pgd_norm', '')}")
def test_clean_label_attacks_change_no_label_and_nothing_outside_the_target_class(tmp_path, attack):
    results = run_in(tmp_path, attack | {"target_class": 4, "export": True})
    set_ = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert (set_["y_train"] == set_["clean_labels"]).all()
    assert (set_["y_train"][set_["is_poisoned"]] == 4).all()
    assert set_["is_poisoned"].sum() >= 1
    assert not set_["is_cross"].any()
    spec = ExperimentSpec.model_validate({"dataset": {"name": "digits", "train_size": 300, "test_size": 100}})
    from worker.lab.data.datasets import load_dataset  # noqa: PLC0415

    clean = load_dataset(spec.dataset, tmp_path, 0).train.images[:, 0].numpy()
    same = (set_["x_train"] == clean).all((1, 2))
    assert same[~set_["is_poisoned"]].all()
    assert not same[set_["is_poisoned"]].any()
    values = only_arm(results)
    assert 0 <= values["attack_success_rate"] <= 1
    if attack["name"] == "poison_frogs":
        assert values["target_image_hit"] in (0.0, 1.0)
        assert values["l_inf"] == 0
        assert values["psnr"] is None
    else:
        assert values["l_inf"] > 0
    stealth = json.loads((tmp_path / "out/seed-0/stealth.json").read_text())
    assert stealth["poisoned_training_images"]["l_inf"] > 0


def test_the_figures_of_the_clean_label_attack_are_recorded(tmp_path):
    run_in(tmp_path, CLEAN_LABEL[0])
    for name in ("perturbation_grid", "perturb_then_stamp"):
        assert (tmp_path / f"out/seed-0/attack/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/seed-0/dataset.png").is_file()
    assert (tmp_path / "out/seed-0/samples.png").is_file()


def test_the_pattern_of_narcissus_lowers_the_surrogates_loss_within_its_bound(tmp_path):
    attack = {"name": "narcissus", "poisoning_rate": 0.02, "pattern_steps": 250, "test_strength": 2}
    run_in(tmp_path, attack | {"surrogate_epochs": 10, "export": True})
    points = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    losses = [point["value"] for point in points if point["name"] == "pattern_loss"]
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]
    pattern = load_file(tmp_path / "out/seed-0/trigger.safetensors")["pattern"]
    assert 12 < pattern.abs().max() <= 16
    set_ = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert set_["is_poisoned"].sum() == 6  # of 300
    assert (tmp_path / "out/seed-0/attack/pattern.png").is_file()


def test_attacks_load_a_shared_surrogate_from_the_store(tmp_path):
    run_in(tmp_path, {"name": "trojan", "patch_steps": 5} | QUICK)
    run_in(tmp_path, {"name": "poison_frogs", "craft_steps": 5} | QUICK)
    log = (tmp_path / "out/log.txt").read_text()
    assert "seed 0, attack, surrogate: taken from the cache" in log
    assert (tmp_path / "out/seed-0/attack/patch.png").is_file()


def test_the_trojan_patch_activates_its_neurons(tmp_path):
    run_in(tmp_path / "a", {"name": "trojan", "patch_steps": 1} | QUICK)
    run_in(tmp_path / "b", {"name": "trojan", "patch_steps": 100} | QUICK)

    def activation(folder):
        points = map(json.loads, (tmp_path / folder / "out/metrics.jsonl").read_text().splitlines())
        return next(p["value"] for p in points if p["name"] == "activation")

    assert activation("b") > 1.1 * activation("a")


@pytest.mark.parametrize(
    ("attack", "hand_over"),
    [({"name": "wanet", "strength": 2}, False), ({"name": "bpp"}, True)],
    ids=["wanet", "bpp"],
)
def test_a_joint_model_is_measured_and_the_trigger_stays(tmp_path, attack, hand_over):
    plain = only_arm(run_in(tmp_path / "a", attack))
    joint = only_arm(run_in(tmp_path / "b", attack | {"joint_epochs": 2, "hand_over": hand_over}))
    assert all(0 <= joint[name] <= 1 for name in OF_ATTACKER)
    assert not any(name in plain for name in OF_ATTACKER)
    assert [joint[name] for name in ("psnr", "l_2")] == [plain[name] for name in ("psnr", "l_2")]
    victims = [joint[name.removeprefix("attacker_")] for name in OF_ATTACKER]
    assert (victims == [joint[name] for name in OF_ATTACKER]) == hand_over


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The folder of a whole run of the attack that trains the most."""
    folder = tmp_path_factory.mktemp("generated")
    run_in(folder, INPUT_AWARE | {"export": True})
    return folder


def test_input_aware_end_to_end(generated):
    results = json.loads((generated / "out/results.json").read_text())
    values = only_arm(results)
    assert 0 <= values["cross_trigger_accuracy"] <= 1
    assert 0 <= values["attack_success_rate"] <= 1
    attackers = {name: values[name] for name in OF_ATTACKER}
    assert all(0 <= value <= 1 for value in attackers.values())
    assert (
        results["arms"][0]["aggregate"]["attacker_clean_accuracy"]["mean"]
        == attackers["attacker_clean_accuracy"]
    )
    points = [json.loads(line) for line in (generated / "out/metrics.jsonl").read_text().splitlines()]
    ours = {(p["name"], p["step"]) for p in points if p["arm"] == "attack"}
    for name in ("clean_accuracy", "attack_success_rate", "cross_trigger_accuracy"):
        assert {(name, 3), (name, 4)} <= ours  # after two epochs of the mask stage
    assert {("mask_density", 1), ("mask_density", 2)} <= ours
    log = (generated / "out/seed-0/attack/generator.csv").read_text().splitlines()
    assert log[0].split(",")[0] == "epoch"
    assert len(log) == 3
    set_ = np.load(generated / "out/seed-0/poisoned_train.npz")
    assert set_["is_poisoned"].sum() == set_["is_cross"].sum() == 30
    assert not (set_["is_poisoned"] & set_["is_cross"]).any()
    assert (set_["y_train"][set_["is_cross"]] == set_["clean_labels"][set_["is_cross"]]).all()
    assert (generated / "out/seed-0/attack/generator.png").is_file()
    again = only_arm(run_in(generated, INPUT_AWARE | {"export": True}))  # every stage from the cache
    assert {name: again[name] for name in OF_ATTACKER} == attackers


class StopsLater(FolderRecorder):
    """Cancels a run after a number of batches."""

    left = 10**9

    def check(self):
        self.left -= 1
        if self.left < 0:
            raise CanceledError("stopped by the test")


@pytest.mark.parametrize(
    ("attack", "batches"),
    [
        (INPUT_AWARE, 4),  # in the mask stage
        (INPUT_AWARE, 22),  # in the generator stage
        (CLEAN_LABEL[0], 8),  # in the surrogate's adversarial training
        ({"name": "hidden_trigger", "craft_steps": 9} | QUICK, 18),  # while poisons are crafted
        ({"name": "narcissus", "pattern_steps": 220} | QUICK, 120),  # while the pattern is optimized
        ({"name": "lira", "generator_epochs": 2, "classifier_epochs": 1}, 9),  # in the joint training
        ({"name": "issba", "code_bits": 4, "encoder_steps": 12, "encoder_batch": 50}, 8),
        # In the second restart, and on the poison of a retrained surrogate.
        ({"name": "witches_brew", "craft_restarts": 2, "craft_steps": 4} | QUICK, 18),
        ({"name": "sleeper_agent", "size": 3, "craft_retrainings": 1, "craft_steps": 6} | QUICK, 33),
    ],
)
def test_an_interrupted_preparation_ends_in_the_same_poison(tmp_path, generated, attack, batches):
    whole = generated if attack == INPUT_AWARE else tmp_path / "whole"
    if whole != generated:
        run_in(whole, attack | {"export": True})
    document = {
        "dataset": {"name": "digits", "train_size": 300, "test_size": 100},
        "model": {"name": "small_cnn", "width": 8},
        "attack": attack,
        "training": {"epochs": 2, "batch_size": 50},
    }
    recorder = StopsLater(tmp_path / "stopped/out")
    recorder.left = batches
    with pytest.raises(CanceledError):
        run_experiment(
            ExperimentSpec.model_validate(document),
            recorder,
            FolderStore(tmp_path / "stopped/stages"),
            data_dir=tmp_path,
            checkpoint_seconds=0,
        )
    recorder.close()
    stopped_in = (tmp_path / "stopped/out/log.txt").read_text().splitlines()[-1]
    assert "started" in stopped_in
    run_in(tmp_path / "stopped", attack | {"export": True})
    expected, resumed = (
        np.load(f / "out/seed-0/poisoned_train.npz")["x_train"] for f in (whole, tmp_path / "stopped")
    )
    assert (expected == resumed).all()


def test_a_trained_trigger_is_stored_for_predictions(generated):
    spec = ExperimentSpec.model_validate(
        {
            "dataset": {"name": "digits", "train_size": 300, "test_size": 100},
            "model": {"name": "small_cnn", "width": 8},
            "attack": INPUT_AWARE,
            "training": {"epochs": 2, "batch_size": 50},
        }
    )
    kept = generated / "out/seed-0/trigger.safetensors"
    assert any(name.startswith("pattern.") for name in load_file(kept))
    checkpoint = {"undefended": (generated / "out/seed-0/undefended/model.safetensors").read_bytes()}

    def ask(triggered, state):
        return predict(
            spec,
            checkpoint,
            data_dir=generated,
            index=0,
            image=None,
            triggered=triggered,
            seed=0,
            trigger_state=state,
        )

    assert ask(True, kept.read_bytes())["picture"] != ask(False, None)["picture"]
    with pytest.raises(SpecError, match="has no trigger before it is trained"):
        ask(True, None)


def previewed(folder, **attack):
    return preview({"dataset": {"name": "digits"}, "attack": attack, "seed": 0}, folder)


def test_previews_need_a_trigger_without_training(tmp_path):
    for attack in (
        {"name": "clean_label", "size": 2},
        {"name": "hidden_trigger"},
        {"name": "wanet"},
        {"name": "refool"},
        {"name": "blend"},
        {"name": "blind"},
        {"name": "adversarial_embedding"},
    ):
        assert previewed(tmp_path, **attack).startswith(b"\x89PNG")
    assert previewed(tmp_path, name="sleeper_agent", size=3, poisoning_rate=0.01).startswith(b"\x89PNG")
    for name in ("input_aware", "lira", "issba", "trojan", "narcissus"):
        with pytest.raises(SpecError, match=r"attack\.name.*trained"):
            previewed(tmp_path, name=name)
    for name in ("poison_frogs", "witches_brew"):
        with pytest.raises(SpecError, match=r"attack\.name.*no trigger"):
            previewed(tmp_path, name=name)
