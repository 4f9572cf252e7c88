"""Architectures of plug-ins, traced like torchvision's."""

import sys
from functools import cache

import torch
from torch import nn

import app.specs.model
from app.specs.facts import DatasetFacts, Shape
from app.specs.models.base import Architecture
from worker.lab.networks.traced import Layout, TracedNetwork, UntraceableError, trace

TRIED_SIDE = 32  # pixels, of the images that a plug-in is tried for at start
TRACED_SIDE = 64  # pixels, of architectures that take images of any size


def build_plugin(spec: Architecture, facts: DatasetFacts | Shape) -> TracedNetwork:
    """The network of a plug-in, with weights from torch's global generator. Raises UntraceableError."""
    shape = facts if isinstance(facts, Shape) else facts.shape
    return TracedNetwork(_make_model(spec, shape), shape.channels, _find_layout(spec, shape))


@cache
def _find_layout(spec: Architecture, shape: Shape) -> Layout:
    """The layout, if it has what the spec's traits promise. Raises UntraceableError."""
    side = min(shape.height, shape.width)
    traits = spec.traits(side)
    traced_side = side if traits.square else max(TRACED_SIDE, traits.least_side)
    try:
        with torch.random.fork_rng(devices=[]):
            model = _make_model(spec, shape)
            layout = trace(model, torch.zeros(2, shape.channels, traced_side, traced_side), shape.classes)
    except UntraceableError:
        raise
    except Exception as error:  # the plug-in's own code
        raise UntraceableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    for name in ("batch_norm", "spatial_maps"):
        promised, found = getattr(traits, name), getattr(layout, name)
        if promised != found:
            raise UntraceableError(f"its traits must have {name}={found}, which is what tracing finds")
    return layout


def _make_model(spec: Architecture, shape: Shape) -> nn.Module:
    model: nn.Module = spec.implementation()(spec, shape)
    if not isinstance(model, nn.Module):
        raise UntraceableError("implementation() must return a function that returns a torch.nn.Module")
    return model


def find_faults() -> list[str]:
    """One line for each architecture of a plug-in that cannot be built or traced with its default fields."""
    faults = []
    for cls in app.specs.model.plugin_architectures():
        traits = cls().traits(TRIED_SIDE)
        side = max(traits.least_side, TRIED_SIDE // traits.multiple * traits.multiple)
        try:
            _find_layout(cls(), Shape(channels=3, height=side, width=side, classes=10))
        except UntraceableError as error:
            file = sys.modules[cls.__module__].__file__
            faults.append(f"{file}: class {cls.__name__} cannot be used as an architecture: {error}")
    return faults


def main() -> None:
    """End the process with the faults on standard error, if there are any."""
    sys.exit("\n".join(find_faults()) or 0)
