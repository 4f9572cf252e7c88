"""Adversarial embedding: losses on hand-computed values, a training that it controls, and the set that it poisons."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn, Torchvision
from tests.lab import memory
from tests.lab.attacks.helpers import attack, experiment, facts, run_in
from tests.lab.defenses.cases import SHORT
from worker.lab.attacks.adversarial_embedding import (
    LARGEST_GAIN,
    Opponent,
    discriminator_loss,
    logits_and_features,
    make_discriminator,
)
from worker.lab.attacks.base import PoisonedSet
from worker.lab.contracts import CanceledError
from worker.lab.networks import build_network

QUICK = {"name": "adversarial_embedding", "joint_epochs": 6, "poisoning_rate": 0.1}
EVERY_TRAINING = ("steps", "epochs", "same_loss")


def opponent(weight: float = 0.0, bias: float = 0.0, **fields: Any) -> Opponent:
    """A discriminator of one feature whose logits are 0 and ``weight * feature + bias``."""
    linear = nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [weight]]))
        linear.bias.copy_(torch.tensor([0.0, bias]))
    spec: Any = experiment(name="adversarial_embedding", **fields).attack
    return Opponent(spec, linear)


def penalty(game: Opponent, *features: float) -> tuple[Tensor, Tensor]:
    """The penalty for these features, the first of a poisoned image, and its gradient."""
    z = torch.tensor(features)[:, None].requires_grad_()
    flags = torch.tensor([1, *[0] * (len(features) - 1)])
    made = game.penalize(z, flags, torch.ones(len(z), dtype=torch.bool), torch.Generator())
    [gradient] = torch.autograd.grad(made, [z], retain_graph=True)
    return made, gradient.flatten()


@pytest.mark.parametrize(
    ("compared", "largest", "expected"),
    [
        ([True, True, False], 5.0, (math.log(2) + math.log(4 / 3)) / 2),
        ([False, True, False], 5.0, math.log(4 / 3)),
        ([False, False, True], 5.0, 5.0),
        ([False, True, True], math.inf, (math.log(4 / 3) + 100) / 2),
        ([False, False, False], 5.0, 0.0),
    ],
)
def test_the_discriminators_loss_is_the_bounded_mean_over_the_compared(
    compared: list[bool], largest: float, expected: float
) -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 100.0]])  # it says 1/2, 3/4 and 1
    loss = discriminator_loss(logits, torch.tensor([0, 1, 0]), torch.tensor(compared), largest)
    assert loss.item() == pytest.approx(expected)


def test_only_what_the_network_gains_is_bounded() -> None:
    """A poisoned image that the discriminator takes for clean: nothing more to gain, but much to repair."""
    sure: dict[str, Any] = {"weight": -50.0, "discriminator_training": "epochs", "adversarial_weight": 1}
    made, gradient = penalty(opponent(**sure, network_goal="maximize"), 1.0)
    assert made.item() == pytest.approx(-LARGEST_GAIN)
    assert gradient.item() == 0
    made, gradient = penalty(opponent(**sure, network_goal="confuse"), 1.0)
    assert made.item() == pytest.approx(25)
    assert gradient.item() == pytest.approx(25)


def test_the_network_maximizes_the_loss_or_makes_it_uncertain() -> None:
    """One poisoned image, of feature 1, whose odds of being poisoned are 3 to 1."""
    slope = math.log(3)
    game = opponent(slope, network_goal="maximize", adversarial_weight=10, discriminator_training="epochs")
    made, gradient = penalty(game, 1.0)
    assert made.item() == pytest.approx(-10 * math.log(4 / 3))
    assert gradient.item() == pytest.approx(10 * slope / 4)  # -lambda (p - 1) slope
    game = opponent(slope, network_goal="confuse", adversarial_weight=10, discriminator_training="epochs")
    made, gradient = penalty(game, 1.0)
    assert made.item() == pytest.approx(10 * (math.log(4 / 3) + math.log(4)) / 2)
    assert gradient.item() == pytest.approx(10 * slope / 4)  # lambda (p - 1/2) slope
    _, at_even_odds = penalty(game, 0.0)
    assert at_even_odds.item() == 0


def test_the_discriminator_learns_each_batch_and_the_networks_loss_leaves_it_alone() -> None:
    game = opponent(discriminator_steps=3, discriminator_learning_rate=0.01)
    _, gradient = penalty(game, 1.0, -1.0)
    # Each step of Adam is as long as its rate at first: the weight of "poisoned" rises, as the features are 1 and -1.
    weight = next(game.discriminator.parameters())
    assert weight.flatten().tolist() == pytest.approx([-0.03, 0.03], rel=1e-3)
    assert not any(p.requires_grad for p in game.discriminator.parameters())
    assert gradient[0] > 0 > gradient[1]  # the features are driven together


def test_one_loss_for_both_teaches_the_discriminator_to_be_wrong() -> None:
    game = opponent(0.0, network_goal="maximize", adversarial_weight=2, discriminator_training="same_loss")
    made, _ = penalty(game, 1.0, -1.0)
    made.backward()  # type: ignore[no-untyped-call]
    # -lambda times the gradient of the mean loss: the logit of "poisoned" has the gradients -1/4 and 1/4.
    gradient = next(game.discriminator.parameters()).grad
    assert gradient is not None
    assert gradient.flatten().tolist() == pytest.approx([-1, 1])


def test_epochs_of_the_discriminator_tell_the_features_apart() -> None:
    game = opponent(discriminator_training="epochs", discriminator_epochs=50, discriminator_learning_rate=0.1)
    clean, poisoned = torch.full((5, 1), -1.0), torch.full((5, 1), 1.0)
    game.fit(clean, poisoned, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = game.discriminator(torch.cat([clean, poisoned])).softmax(1)[:, 1]
    assert (made[:5] < 0.1).all()
    assert (made[5:] > 0.9).all()


def test_noise_is_added_to_what_the_discriminator_sees() -> None:
    game = opponent(1.0, feature_noise=2.0, discriminator_training="epochs", network_goal="maximize")
    z, flags = torch.zeros(2, 1), torch.tensor([1, 0])
    made = game.penalize(z, flags, torch.ones(2, dtype=torch.bool), torch.Generator().manual_seed(3))
    noise = 2 * torch.empty(2, 1).normal_(generator=torch.Generator().manual_seed(3)).flatten()
    expected = -0.1 * torch.nn.functional.softplus(torch.stack([-noise[0], noise[1]])).mean()
    assert made.item() == pytest.approx(expected.item())


def test_the_target_class_or_the_whole_set_is_compared() -> None:
    labels, is_poisoned = torch.tensor([0, 1, 0, 2]), torch.tensor([False, False, True, False])
    poisoned = PoisonedSet(
        torch.zeros(4, 1, 4, 4, dtype=torch.uint8), labels, labels, is_poisoned, ~is_poisoned, torch.arange(4)
    )
    made: Any = attack(facts(), name="adversarial_embedding")
    assert made.compared(poisoned).tolist() == [True, False, True, False]
    made = attack(facts(), name="adversarial_embedding", compared="training_set")
    assert made.compared(poisoned).all()


@pytest.mark.parametrize("spec", [SmallCnn(width=8), Torchvision(architecture="squeezenet1_1")])
def test_logits_and_features_are_of_one_pass(spec: Any) -> None:
    """The last layer of SqueezeNet is a convolution, whose outputs are averaged afterwards."""
    network = build_network(spec, facts(channels=3, height=32, width=32), 0).eval()
    x = torch.rand(2, 3, 32, 32)
    logits, features = logits_and_features(network, x)
    assert torch.equal(logits, network(x))
    assert torch.allclose(features, network.features(x))
    assert make_discriminator(features.shape[1])(features).shape == (2, 2)


def test_the_poisoned_set_alone_is_that_of_badnets(tmp_path: Path) -> None:
    sets = []
    for name, more in (("badnets", {}), ("adversarial_embedding", {"joint_epochs": 1})):
        run_in(tmp_path / name, {"name": name, "poisoning_rate": 0.1, "export": True, **more})
        sets.append(np.load(tmp_path / name / "out/seed-0/poisoned_train.npz"))
    for part in ("x_train", "y_train", "is_poisoned", "x_test_triggered"):
        assert (sets[0][part] == sets[1][part]).all()
    assert sets[1]["is_poisoned"].sum() == 30
    assert (sets[1]["y_train"][sets[1]["is_poisoned"]] == 0).all()
    assert (sets[1]["clean_labels"][sets[1]["is_poisoned"]] != 0).all()


def test_the_undefended_model_is_the_attackers_and_every_kind_of_defense_applies(tmp_path: Path) -> None:
    names = ("fine_tuning", "spectral_signatures", "strip_inputs", "abl")
    results = run_in(tmp_path, QUICK, defenses=[{"name": name, **SHORT.get(name, {})} for name in names])
    values = {arm["arm"]: arm["seeds"][0] for arm in results["arms"]}
    undefended = values["undefended"]
    assert undefended["attack_success_rate"] == undefended["attacker_attack_success_rate"] > 0.9
    assert undefended["clean_accuracy"] == undefended["attacker_clean_accuracy"] > 0.3
    assert all(undefended[name] is not None for name in ("psnr", "ssim", "l_inf", "l_2"))
    assert set(names) <= set(values)
    assert values["spectral_signatures"]["target_class_auroc"] is not None


def test_a_warmup_is_without_the_discriminator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def penalize(self: Opponent, features: Tensor, *rest: Any) -> Tensor:
        calls.append(len(features))
        return features.sum() * 0

    monkeypatch.setattr(Opponent, "penalize", penalize)
    run_in(tmp_path, QUICK | {"joint_epochs": 3, "warmup_epochs": 2})
    assert calls == [50] * 6  # the batches of the last epoch


@pytest.mark.parametrize("training", EVERY_TRAINING)
def test_an_interrupted_training_ends_in_the_same_model(training: str) -> None:
    document = {
        "dataset": {"name": "digits", "train_size": 200, "test_size": 60},
        "model": {"name": "small_cnn", "width": 8},
        "attack": QUICK
        | {"joint_epochs": 4, "discriminator_training": training, "discriminator_epochs": 3}
        | {"feature_noise": 0.1},
        "training": {"epochs": 1, "batch_size": 50},
    }
    whole = memory.experiment(document)
    left, store = 10, memory.MemoryStore()

    def stop() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CanceledError("stopped by the test")

    with pytest.raises(CanceledError):
        memory.experiment(document, memory.MemoryRecorder(stop), store)
    resumed = memory.experiment(document, store=store)
    assert any("resumed from a checkpoint at epoch 2" in line for line in resumed.lines)
    model = "seed-0/undefended/model.safetensors"
    assert resumed.files[model] == whole.files[model]


def test_a_victim_of_someone_else_is_refused() -> None:
    victim = {"model_id": "0" * 8 + "-0000" * 3 + "-" + "0" * 12}
    spec = ExperimentSpec.model_validate({"attack": {"name": "adversarial_embedding"}, "victim": victim})
    [problem] = find_problems(spec, BUILT_IN["cifar10"])
    assert problem.field == "victim"
    assert problem.allowed == "null, since the attacker trains the victim of adversarial_embedding"


@pytest.mark.long  # forty seconds: on fewer images and epochs the discriminator teaches the network nothing
def test_spectral_signatures_see_less_than_of_badnets() -> None:
    document = json.loads(Path("examples/digits-adversarial-embedding.json").read_text())
    document |= {
        "seeds": [101, 102],
        "model": {"name": "small_cnn", "width": 32},
        "defenses": [{"name": "spectral_signatures", "then": "nothing"}],
    }
    seen = {}
    for name in ("badnets", "adversarial_embedding"):
        results = memory.experiment(document | {"attack": {"name": name, "poisoning_rate": 0.05}}).results
        seen[name] = [results["spectral_signatures", seed] for seed in document["seeds"]]
        for seed in document["seeds"]:
            undefended: Any = results["undefended", seed]
            assert undefended["attack_success_rate"] > 0.85
            assert undefended["clean_accuracy"] > 0.95
    badnets, embedded = (sum(v["target_class_auroc"] or 0 for v in values) / 2 for values in seen.values())
    assert embedded < badnets - 0.1
    assert 0.35 < embedded < 0.65  # as good as chance
