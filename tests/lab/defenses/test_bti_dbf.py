"""BTI-DBF: mask, generator and losses by hand, and what it finds and removes."""

import pytest
import torch
from torch import Tensor

from app.specs.defenses.inversion import BtiDbf
from app.specs.facts import BUILT_IN, Shape
from app.specs.model import SmallCnn, Torchvision
from tests.lab.defenses.cases import BADNETS, defended, number
from worker.lab.defenses.bti_dbf import FeatureMask, inversion_objective
from worker.lab.defenses.trigger_generator import TriggerGenerator
from worker.lab.networks import Network, build_network
from worker.lab.training import Batch

TINY = Shape(channels=3, height=32, width=32, classes=3)


@pytest.mark.parametrize("model", [SmallCnn(), Torchvision(architecture="resnet18")])
def test_a_mask_scales_what_the_layer_behind_the_last_map_reads(model: SmallCnn | Torchvision) -> None:
    network = build_network(model, TINY, 0).eval()
    x, channels = torch.rand(2, 3, 32, 32), network.prunable_weight.shape[1]
    search = FeatureMask(network, torch.zeros(channels))
    assert search.mask.tolist() == [0.5] * channels
    assert torch.allclose(search.logits_through(torch.ones(channels), x), network(x), atol=1e-5)
    mask = torch.ones(channels)
    channel = int(network.prunable_activity(x).mean(0).argmax())
    mask[channel] = 0.0
    through = search.logits_through(mask, x)
    assert not torch.allclose(through, network(x), atol=1e-5)
    with torch.no_grad():
        network.prunable_weight[:, channel] = 0  # as pruning the channel does
    assert torch.allclose(through, network(x), atol=1e-5)


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (8, 2), (28, 3), (32, 4)])
def test_the_generator_makes_images_of_any_size(side: int, levels: int) -> None:
    victim = build_network(SmallCnn(width=4), BUILT_IN["digits"], 0)
    facts = BUILT_IN["digits"].model_copy(update={"height": side, "width": side})
    generator = TriggerGenerator.for_victim(victim, facts, seed=0)
    x = torch.rand(2, 1, side, side)
    assert generator(x).shape == x.shape
    assert len(generator.down) == levels
    again = TriggerGenerator.for_victim(victim, facts, seed=0)
    assert torch.equal(generator(x), again(x))


class Pixels(Network):
    """An image's two pixels are its features, and its logits."""

    def prunable_activity(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Shift(Network):
    """Adds a constant to each of two pixels."""

    def __init__(self, *shift: float) -> None:
        super().__init__(1)
        self.shift = torch.tensor(shift).view(1, 1, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_the_generator_changes_what_is_outside_the_mask_within_its_bounds() -> None:
    x, labels = torch.zeros(3, 1, 1, 2), torch.zeros(3, dtype=torch.int64)
    batch = Batch(x, labels, torch.arange(3), torch.Generator())
    mask, spec = torch.tensor([1.0, 0.0]), BtiDbf(change_bound=0.3, feature_bound=0.1)

    def loss(generator: Network, target: Tensor | None = None) -> float:
        return inversion_objective(spec, Pixels(1), mask, target)(generator, batch).item()

    # Benign change 0.04 / 2, other change 0.36 / 2, means over two features.
    assert loss(Shift(0.2, 0.6)) == pytest.approx(0.01 * 0.02 - 0.18)
    assert loss(Shift(0.0, 0.8)) == pytest.approx(0.32)  # beyond the bound on the image: back
    assert loss(Shift(0.5, 0.0)) == pytest.approx(0.125)  # beyond the bound on benign features
    expected = 0.01 * 0.02 - 0.18 + float(torch.tensor([0.2, 0.6]).logsumexp(0)) - 0.6
    assert loss(Shift(0.2, 0.6), torch.tensor(1)) == pytest.approx(expected)


# A U-Net is trained for 240 steps: ten seconds of one core.
@pytest.mark.long
def test_bti_dbf_finds_the_target_and_removes_the_backdoor() -> None:
    short = {"rounds": 1, "generator_steps": 100, "mask_steps": 400, "trigger_steps": 140, "steps": 60}
    done = defended(BADNETS, {"name": "bti_dbf", "clean_ratio": 0.2, "learning_rate": 1e-3, **short})
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "bti_dbf", "target_class_found") == 1
    assert number(done, "bti_dbf", "attack_success_rate") < 0.2
    assert number(done, "bti_dbf", "clean_accuracy") > 0.9
