"""Victim networks."""

import torch

from app.specs.facts import DatasetFacts, Shape
from app.specs.model import BLOCKS_FROM, ModelSpec, PreActResNet18, ResNet18, SmallCnn, WideResNet16x1
from worker.lab.compute import derive_seed
from worker.lab.networks import preact_resnet18, resnet18, small_cnn, wide_resnet
from worker.lab.networks.base import Network

__all__ = ["Network", "build_network"]


def build_network(spec: ModelSpec, facts: DatasetFacts | Shape, seed: object) -> Network:
    """A freshly initialized network on the CPU; its weights follow from ``seed`` alone."""
    side = min(facts.height, facts.width)
    # torch initializes from the global generator only, so it is forked and seeded here.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        match spec:
            case SmallCnn():
                blocks = spec.blocks or (5 if side >= BLOCKS_FROM else 3)
                return small_cnn.SmallCnn(facts.channels, facts.classes, spec.width, blocks)
            case ResNet18():
                return resnet18.ResNet18(facts.channels, facts.classes, side)
            case PreActResNet18():
                return preact_resnet18.PreActResNet18(facts.channels, facts.classes, spec.final_norm)
            case WideResNet16x1():
                return wide_resnet.WideResNet16x1(facts.channels, facts.classes)
