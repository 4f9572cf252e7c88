"""Networks: names of layers in published checkpoints, and checkpoints of earlier versions."""

import pytest
import torch
from torch import Tensor

from app.specs.facts import BUILT_IN
from app.specs.model import ModelSpec, PreActResNet18, ResNet18, SmallCnn, WideResNet16x1
from worker.lab.networks import build_network
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.checkpoints import find_variant, rename_tensors, shapes_of
from worker.lab.networks.loading import load_model

CIFAR, DIGITS = BUILT_IN["cifar10"], BUILT_IN["digits"]
OWN = {"mean", "std"}
OLD_PREFIXES: dict[str, dict[str, str]] = {
    "resnet18": {
        "conv1.": "blocks.0.0.",
        "bn1.": "blocks.0.1.",
        "layer1.": "blocks.0.3.",
        "layer2.": "blocks.1.",
        "layer3.": "blocks.2.",
        "layer4.": "blocks.3.",
        "fc.": "head.",
    },
    "preact_resnet18": {
        "conv1.": "blocks.0.0.",
        "layer1.0.": "blocks.0.1.",
        "layer1.1.": "blocks.0.2.",
        "layer2.": "blocks.1.",
        "layer3.": "blocks.2.",
        "layer4.": "blocks.3.",
        "bn.": "blocks.3.2.",
        "linear.": "head.",
    },
    "wide_resnet_16_1": {
        "conv1.": "blocks.0.0.",
        "block1.layer.0.": "blocks.0.1.",
        "block1.layer.1.": "blocks.0.2.",
        "block2.layer.": "blocks.1.",
        "block3.layer.": "blocks.2.",
        "bn1.": "blocks.2.2.",
        "fc.": "head.",
    },
}
"""The names of version 0.2.0, by those of today."""


def old_name(model: str, name: str) -> str:
    prefixes = OLD_PREFIXES[model]
    prefix = next((p for p in prefixes if name.startswith(p)), "")
    renamed = prefixes.get(prefix, "") + name.removeprefix(prefix)
    return renamed.replace("shortcut.0.", "project.").replace("convShortcut.", "project.")


def test_resnet18_has_torchvisions_names() -> None:
    network = build_network(ResNet18(), CIFAR, 0)
    assert (
        network.state_dict().keys() - OWN == torchvision_models().resnet18(num_classes=10).state_dict().keys()
    )


def test_wide_resnet_has_the_names_and_size_of_the_abl_authors() -> None:
    names = build_network(WideResNet16x1(), CIFAR, 0).state_dict()
    assert {"conv1.weight", "block1.layer.0.bn1.weight", "block3.layer.1.conv2.weight"} <= names.keys()
    assert {"block2.layer.0.convShortcut.weight", "bn1.running_var", "fc.bias"} <= names.keys()
    assert names["fc.weight"].shape == (10, 64)


def test_preact_resnet18_ends_as_in_the_benchmark_unless_the_papers_norm_is_asked_for() -> None:
    plain, normed = (
        build_network(PreActResNet18(final_norm=final), CIFAR, 0).state_dict().keys()
        for final in (False, True)
    )
    assert {"layer4.1.conv2.weight", "layer2.0.shortcut.0.weight", "linear.weight"} <= plain
    assert {name.split(".")[0] for name in normed - plain} == {"bn"}


@pytest.mark.parametrize("side", [8, 32])
def test_small_cnn_is_deeper_on_larger_images(side: int) -> None:
    facts = DIGITS if side == 8 else CIFAR
    maps = build_network(SmallCnn(), facts, 0).feature_maps(torch.zeros(1, facts.channels, side, side))
    assert len(maps) == (3 if side == 8 else 5)
    assert len(build_network(SmallCnn(blocks=3), CIFAR, 0).feature_maps(torch.zeros(1, 3, 32, 32))) == 3


@pytest.mark.parametrize(
    ("stored", "model"),
    [
        (ResNet18(), ResNet18()),
        (PreActResNet18(final_norm=True), PreActResNet18()),
        (WideResNet16x1(), WideResNet16x1()),
        (SmallCnn(blocks=3), SmallCnn()),
    ],
    ids=lambda model: model.name,
)
def test_checkpoints_of_earlier_versions_load(stored: ModelSpec, model: ModelSpec) -> None:
    network = build_network(stored, CIFAR, 0).eval()
    tensors: dict[str, Tensor] = dict(network.state_dict())
    old = {old_name(model.name, n) if model.name in OLD_PREFIXES else n: t for n, t in tensors.items()}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(load_model(model, CIFAR, old)(images), network(images))


@pytest.mark.parametrize("model", [ResNet18(), PreActResNet18(), WideResNet16x1(), SmallCnn()])
def test_names_of_today_stay(model: ModelSpec) -> None:
    tensors = dict(build_network(model, CIFAR, 0).state_dict())
    assert rename_tensors(model, tensors).keys() == tensors.keys()
    within = {f"network.{name}": tensor for name, tensor in tensors.items()}  # of a model defended by nab
    assert rename_tensors(model, within).keys() == within.keys()
    assert (
        build_network(find_variant(model, shapes_of(tensors)), CIFAR, 0).state_dict().keys() == tensors.keys()
    )
