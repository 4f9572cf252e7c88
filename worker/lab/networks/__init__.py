"""Victim networks."""

import torch

from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec, PreActResNet18, ResNet18, SmallCnn, Timm, Torchvision, WideResNet16x1
from app.specs.models.torchvision import SMALL_IMAGE
from worker.lab.compute import seeded_global_generator
from worker.lab.networks import (
    plugin,
    preact_resnet18,
    resnet18,
    small_cnn,
    timm_zoo,
    torchvision_zoo,
    wide_resnet,
)
from worker.lab.networks.base import Network

__all__ = ["Network", "build_network", "check_architecture"]


def check_architecture(spec: ModelSpec, facts: DatasetFacts | Shape) -> None:
    """Raises SpecError if an architecture of timm, which the service cannot build, cannot be built for these images."""
    if isinstance(spec, Timm):
        timm_zoo.find_layout(spec, facts.channels, facts.classes, min(facts.height, facts.width))


def build_network(spec: ModelSpec, facts: DatasetFacts | Shape, seed: object) -> Network:
    """A freshly initialized network on the CPU; its weights follow from ``seed`` alone."""
    side = min(facts.height, facts.width)
    with seeded_global_generator(torch.device("cpu"), "weights", seed):
        if spec.code:
            return plugin.build_plugin(spec, facts)
        match spec:
            case SmallCnn():
                network: Network = small_cnn.SmallCnn(
                    facts.channels, facts.classes, spec.width, spec.blocks_for(side)
                )
            case ResNet18():
                small = side < SMALL_IMAGE if spec.stem is None else spec.stem == "small"
                network = resnet18.ResNet18(facts.channels, facts.classes, small)
            case PreActResNet18():
                network = preact_resnet18.PreActResNet18(facts.channels, facts.classes, spec.final_norm)
            case WideResNet16x1():
                network = wide_resnet.WideResNet16x1(facts.channels, facts.classes)
            case Torchvision():
                network = torchvision_zoo.build_torchvision(spec, facts)
            case Timm():
                network = timm_zoo.build_timm(spec, facts)
        return network
