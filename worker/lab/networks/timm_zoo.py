"""timm's image models. ``python -m worker.lab.networks.timm_zoo`` prints the facts that the service has of them.

No weights are downloaded: networks begin with random ones.
"""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import app.specs.models.timm_architectures
from app.specs.facts import DatasetFacts, Shape
from app.specs.models.base import install_command
from app.specs.models.timm import Timm
from app.specs.models.timm_architectures import Facts
from worker.lab.contracts import SpecError
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.torchvision_zoo import first_convolution, replace_first
from worker.lab.networks.traced import Layout, TracedNetwork, trace

TRACED_SIDE = 256  # pixels, of architectures that take images of any size
FIXED_SIDE = 224  # pixels, of the images that those of one size are measured on
LARGE_KERNEL = 5  # side of the first convolution's kernel from which small images get one of 3x3
_POOLS = ("maxpool", "features.pool0", "stem.pool")
"""Names of the pooling that follows the first convolution."""


def timm_module() -> ModuleType:
    """The module ``timm``. Raises SpecError if it is not installed."""
    torchvision_models()  # timm imports torchvision, which may need help
    try:
        import timm  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise SpecError(
            f"model.name: 'timm' needs timm, which this worker lacks; get it with: {install_command('timm')}"
        ) from error
    module: ModuleType = timm
    return module


def build_timm(spec: Timm, facts: DatasetFacts | Shape) -> TracedNetwork:
    """The network, with random weights from torch's global generator. Raises SpecError if it cannot be built."""
    side = min(facts.height, facts.width)
    layout = find_layout(spec, facts.channels, facts.classes, side)
    return TracedNetwork(make_model(spec, facts.channels, facts.classes, side), facts.channels, layout)


@cache
def find_layout(spec: Timm, channels: int, classes: int, side: int) -> Layout:
    """The layout of an architecture, from the shapes of what its layers return. Raises SpecError."""
    traced_side = side if spec.traits(side).square else max(TRACED_SIDE, side)
    timm_module()
    try:
        with torch.random.fork_rng(devices=[]):
            # Some architectures compute with the values of tensors, which have none if they are made on ``meta``.
            model = make_model(spec, channels, classes, side).to("meta")
        with torch.no_grad():
            model.eval()(torch.empty(2, channels, side, side, device="meta"))  # the size that is asked for
        return trace(model, torch.empty(2, channels, traced_side, traced_side, device="meta"), classes)
    except Exception as error:  # timm's and torch's own, of many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SpecError(
            f"model.architecture: {spec.architecture!r} cannot be built for images of {side}x{side} pixels: {reason}"
        ) from error


def make_model(spec: Timm, channels: int, classes: int, side: int) -> nn.Module:
    """The model as timm has it, but for the first layers and the number of classes."""
    more: dict[str, Any] = {"img_size": side} if spec.facts.fixed_size else {}
    if patch := spec.patch_side(side):
        more["patch_size"] = patch
    model: nn.Module = timm_module().create_model(
        spec.architecture, pretrained=False, num_classes=classes, in_chans=channels, **more
    )
    if spec.has_small_stem(side) and not spec.facts.fixed_size:
        adapt_stem(model)
    return model


def adapt_stem(model: nn.Module) -> None:
    """Have the first layers reduce small images less: no pooling, and a first convolution without stride, of 3x3 if it
    is large; patches of half the side."""
    _, first = first_convolution(model)
    kernel, stride = first.kernel_size[0], first.stride[0]
    if kernel == stride:
        half = max(1, kernel // 2)
        replace_first(model, kernel_size=(half, half), stride=(half, half))
    elif kernel >= LARGE_KERNEL:
        replace_first(model, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    else:
        first.stride = (1, 1)
    for pool in _POOLS:
        if pool in dict(model.named_modules()):
            model.set_submodule(pool, nn.Identity())


def measure(name: str) -> Facts | None:
    """The facts of an architecture; None if it cannot be traced."""
    timm = timm_module()
    configuration = timm.get_pretrained_cfg(name)
    fixed = bool(configuration and configuration.fixed_input_size)
    more = {"img_size": FIXED_SIDE} if fixed else {}
    side = FIXED_SIDE if fixed else TRACED_SIDE
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=10, **more)
            layout = trace(model, torch.empty(2, 3, side, side), 10)
    except Exception:  # timm's and torch's own, of many types
        return None
    return Facts(layout.batch_norm, layout.spatial_maps, fixed)


def main() -> None:
    """Print the module `app.specs.models.timm_architectures`."""
    found: dict[Facts, list[str]] = {}
    for name in timm_module().list_models():
        if (facts := measure(name)) is not None:
            found.setdefault(facts, []).append(name)
    head = Path(app.specs.models.timm_architectures.__file__).read_text().partition("_NAMES")[0]
    print(head + "_NAMES: dict[Facts, str] = {")
    for facts in sorted(found):
        print(f'    Facts({", ".join(map(str, facts))}): """')
        line = ""
        for name in found[facts]:
            if len(line) + len(name) > 118:
                print(line.rstrip())
                line = ""
            line += name + " "
        print(line.rstrip() + '\n    """,')
    print("}")
    print("ARCHITECTURES = {name: facts for facts, names in _NAMES.items() for name in names.split()}")


if __name__ == "__main__":
    main()
