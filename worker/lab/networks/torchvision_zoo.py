"""Torchvision's classification models, with stems for small images."""

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from app.specs.facts import DatasetFacts, Shape
from app.specs.models.torchvision import MAX_VIT_STRIDES, Torchvision
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.traced import Layout, TracedNetwork, trace

TRACED_SIDE = (
    299  # pixels, of architectures that take images of any size: all of them reduce such images five times
)
VIT_SIZES = {  # layers, heads, width, width of the MLPs (Dosovitskiy et al. 2021, table 1)
    "b": (12, 12, 768, 3072),
    "l": (24, 16, 1024, 4096),
    "h": (32, 16, 1280, 5120),
}


def build_torchvision(spec: Torchvision, facts: DatasetFacts | Shape) -> TracedNetwork:
    """The network, with random weights from torch's global generator."""
    side = min(facts.height, facts.width)
    model = make_model(spec, facts.channels, facts.classes, side)
    return TracedNetwork(model, facts.channels, find_layout(spec, facts.channels, facts.classes, side))


@cache
def find_layout(spec: Torchvision, channels: int, classes: int, side: int) -> Layout:
    """The layout of an architecture: traced without weights or images, from their shapes alone."""
    with torch.device("meta"):
        model = make_model(spec, channels, classes, side)
        traced_side = side if spec.traits(side).square else TRACED_SIDE
        return trace(model, torch.empty(2, channels, traced_side, traced_side), classes)


def make_model(spec: Torchvision, channels: int, classes: int, side: int) -> nn.Module:
    """The model as torchvision has it, but for the first layers and the number of classes."""
    models = torchvision_models()
    small = spec.has_small_stem(side)
    name = spec.architecture
    more: dict[str, Any] = {"num_classes": classes}
    if spec.is_vit:
        layers, heads, width, mlp = VIT_SIZES[name.split("_")[1]]
        model: nn.Module = models.VisionTransformer(
            side, spec.patch_side(side), layers, heads, width, mlp, **more
        )
    elif name == "maxvit_t":
        # The small stem halves the image once less than the class assumes.
        model = _make_maxvit(models, 2 * side if small else side, classes)
    else:
        if name in ("googlenet", "inception_v3"):
            # The auxiliary classifiers' losses are not part of the training loop.
            more |= {"aux_logits": False, "init_weights": True, "transform_input": False}
        model = get_model(name, **more)
    if channels != 3:
        replace_first(model, in_channels=channels)
    if small:
        adapt_stem(model, name)
    return model


def get_model(name: str, **more: Any) -> nn.Module:
    """Torchvision's model on the default device, which may be ``meta``."""
    device = torch.get_default_device()
    # RegNet computes its widths with tensors, which have no values on ``meta``.
    with torch.device("cpu") if family_of(name) == "regnet" else nullcontext():
        model: nn.Module = torchvision_models().get_model(name, weights=None, **more)
    return model.to(device)


def adapt_stem(model: nn.Module, name: str) -> None:
    """Have the first layers reduce small images less; as is usual on CIFAR-10."""
    family = family_of(name)
    match family:
        case "resnet" | "resnext" | "wide" | "googlenet" | "densenet":
            replace_first(model, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
            _remove_pool(
                model, {"googlenet": "maxpool1", "densenet": "features.pool0"}.get(family, "maxpool")
            )
        case "shufflenet":
            first_convolution(model)[1].stride = (1, 1)
            _remove_pool(model, "maxpool")
        case "inception":
            first_convolution(model)[1].stride = (1, 1)
            _remove_pool(model, "maxpool1")
            _remove_pool(model, "maxpool2")
        case "convnext" | "swin":
            replace_first(model, kernel_size=(2, 2), stride=(2, 2))
        case "squeezenet" | "mnasnet" | "mobilenet" | "efficientnet" | "regnet" | "maxvit":
            first_convolution(model)[1].stride = (1, 1)


STEM_FAMILIES = frozenset({
    "resnet", "resnext", "wide", "googlenet", "densenet", "shufflenet", "inception", "convnext", "swin", "squeezenet",
    "mnasnet", "mobilenet", "efficientnet", "regnet", "maxvit", "vit",
})  # fmt: skip
"""Families of architectures that have a stem to adapt."""


def family_of(name: str) -> str:
    """The first word of an architecture's name, without numbers."""
    return name.split("_", maxsplit=1)[0].rstrip("0123456789")


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution, which gets the image, and its name."""
    return next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))


def replace_first(model: nn.Module, **changes: Any) -> None:
    """Replace the first convolution by a new one that differs in ``changes``."""
    name, old = first_convolution(model)
    settings = {key: getattr(old, key) for key in ("in_channels", "kernel_size", "stride", "padding")}
    new = nn.Conv2d(out_channels=old.out_channels, bias=old.bias is not None, **(settings | changes))
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(name, new)


def _remove_pool(model: nn.Module, name: str) -> None:
    model.set_submodule(name, nn.Identity())


def _make_maxvit(models: Any, side: int, classes: int) -> nn.Module:
    """MaxViT-T (Tu et al. 2022), whose windows have at most 8 positions a side and divide every map."""
    last = side // MAX_VIT_STRIDES["original"]
    model: nn.Module = models.MaxVit(
        input_size=(side, side),
        stem_channels=64,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        partition_size=max(size for size in range(1, 9) if last % size == 0),
        num_classes=classes,
    )
    return model
