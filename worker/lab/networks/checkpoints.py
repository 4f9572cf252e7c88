"""Checkpoints as people have them: other names of layers, prefixes, types, and what is left out.

Earlier versions of this project stored names of their own, and two architectures with another depth.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor

from app.specs.model import ModelSpec, PreActResNet18, ResNet18, SmallCnn, Timm, Torchvision
from worker.lab.networks.torchvision_zoo import family_of

INNER = "network."  # prefix of the tensors of a network that a `TriggerInput` contains
OUTER = "model."  # prefix of the tensors of a network that a `TracedNetwork` contains
NORMALIZATION = ("mean", "std")
PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "state_dict.", "_orig_mod.")
"""Those that DataParallel, torch.compile and common training loops add."""
COUNTER = "num_batches_tracked"
MAX_NAMES = 3  # tensors that a message names
Rules = tuple[tuple[str, str], ...]

_OLD_NAMES: dict[str, Rules] = {
    "resnet18": (
        (r"^blocks\.0\.0\.", "conv1."),
        (r"^blocks\.0\.1\.(?=weight|bias|running|num)", "bn1."),
        (r"^blocks\.0\.[34]\.", "layer1."),  # after the stem, which has three or four layers
        (r"^blocks\.1\.", "layer2."),
        (r"^blocks\.2\.", "layer3."),
        (r"^blocks\.3\.", "layer4."),
        (r"^head\.", "fc."),
    ),
    "preact_resnet18": (
        (r"^blocks\.0\.0\.", "conv1."),
        (r"^blocks\.0\.1\.", "layer1.0."),
        (r"^blocks\.0\.2\.", "layer1.1."),
        (r"^blocks\.1\.", "layer2."),
        (r"^blocks\.2\.", "layer3."),
        (r"^blocks\.3\.2\.", "bn."),
        (r"^blocks\.3\.", "layer4."),
        (r"\.project\.", ".shortcut.0."),
        (r"^head\.", "linear."),
    ),
    "wide_resnet_16_1": (
        (r"^blocks\.0\.0\.", "conv1."),
        (r"^blocks\.0\.1\.", "block1.layer.0."),
        (r"^blocks\.0\.2\.", "block1.layer.1."),
        (r"^blocks\.1\.", "block2.layer."),
        (r"^blocks\.2\.2\.", "bn1."),
        (r"^blocks\.2\.", "block3.layer."),
        (r"\.project\.", ".convShortcut."),
        (r"^head\.", "fc."),
    ),
}
_SYNONYMS: Rules = ((r"\.shortcut\.", ".downsample."), (r"^(linear|classifier|head)\.", "fc."))
"""The names of kuangliu/pytorch-cifar, which many backdoor benchmarks copied, to torchvision's."""
_TIMM_VIT: Rules = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.encoder_layer_\1.ln_1."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.encoder_layer_\1.ln_2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)
_FIRST_LAYERS = {
    "resnet": "conv1", "resnext": "conv1", "wide": "conv1", "googlenet": "conv1.conv", "densenet": "features.conv0",
    "convnext": "features.0.0", "swin": "features.0.0",
}  # fmt: skip
"""The first convolution of the families of torchvision whose stem for small images has another kernel."""
_TIMM_KERNELS = {"conv1": 7, "features.conv0": 7, "stem.0": 4}
"""The first convolutions of timm's families whose stem for small images has another kernel."""
_ORIGINAL_KERNELS = {"convnext": 4, "swin": 4}  # of the others: 7


def rename_tensor(model: ModelSpec, name: str) -> str:
    """The present name of a tensor that an earlier version may have stored under another one."""
    prefix, bare = (INNER, name.removeprefix(INNER)) if name.startswith(INNER) else ("", name)
    return prefix + _renamed(bare, _OLD_NAMES.get(model.name, ()))


def rename_tensors(model: ModelSpec, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` under their present names."""
    return {rename_tensor(model, name): tensor for name, tensor in tensors.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def find_variant(model: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
    """The variant of ``model`` with tensors of these (present) names and shapes; ``model`` itself if it has them."""
    bare = {name.removeprefix(INNER).removeprefix(OUTER): shape for name, shape in shapes.items()}
    match model:
        case SmallCnn(blocks=None) if "blocks.2.0.weight" in bare:
            return model.model_copy(update={"blocks": 5 if "blocks.4.0.weight" in bare else 3})
        case PreActResNet18(final_norm=False) if "bn.weight" in bare:
            return model.model_copy(update={"final_norm": True})
        case ResNet18(stem=None) if kernel := _kernel(bare, "conv1"):
            return model.model_copy(update={"stem": "original" if kernel == 7 else "small"})
        case Torchvision():
            return _find_torchvision_variant(model, bare)
        case Timm():
            return _find_timm_variant(model, bare)
    return model


def _find_torchvision_variant(model: Torchvision, bare: Mapping[str, tuple[int, ...]]) -> Torchvision:
    if model.is_vit and model.patch_size is None and (kernel := _kernel(bare, "conv_proj")):
        return model.model_copy(update={"patch_size": kernel})
    family = family_of(model.architecture)
    if model.stem == "auto" and (kernel := _kernel(bare, _FIRST_LAYERS.get(family, ""))):
        is_original = kernel == _ORIGINAL_KERNELS.get(family, 7)
        return model.model_copy(update={"stem": "original" if is_original else "small"})
    return model


def _find_timm_variant(model: Timm, bare: Mapping[str, tuple[int, ...]]) -> Timm:
    if model.has_patches and model.patch_size is None and (kernel := _kernel(bare, "patch_embed.proj")):
        return model.model_copy(update={"patch_size": kernel})
    if model.stem == "auto" and not model.facts.fixed_size:
        kernels = ((_kernel(bare, layer), original) for layer, original in _TIMM_KERNELS.items())
        if known := next(((kernel, original) for kernel, original in kernels if kernel), None):
            return model.model_copy(update={"stem": "original" if known[0] == known[1] else "small"})
    return model


def _kernel(shapes: Mapping[str, tuple[int, ...]], layer: str) -> int | None:
    shape = shapes.get(f"{layer}.weight", ())
    return shape[2] if len(shape) == 4 else None


def _renamed(name: str, rules: Rules) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


@dataclass
class Match:
    """How a file's tensors become a network's. ``names``: of the network's tensors, by those of the file."""

    names: dict[str, str]
    notes: list[str] = field(default_factory=list)
    """What was mapped, in words."""


def match_names(
    model: ModelSpec, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> Match:
    """The best match of the names in a file to those of a network, both with shapes. It may leave some unmatched."""
    own = {name.removeprefix(OUTER): name for name in expected}
    plain = {name: name for name in found}
    notes = []
    if not any(name.startswith("stamp_") for name in found):
        prefix = _common_prefix(found)
        plain = {name: name if name in NORMALIZATION else name.removeprefix(prefix) for name in found}
        notes = [f"prefix {prefix!r} removed"] if prefix and prefix != OUTER else []

    candidates: list[tuple[str, dict[str, str]]] = [("", plain)]
    old = {name: rename_tensor(model, bare) for name, bare in plain.items()}
    candidates.append(("names of an earlier version", old))
    for title, rules in (
        ("names of pytorch-cifar", _SYNONYMS),
        ("names of torchvision", (("downsample", "shortcut"), (r"^fc\.", "linear."))),
        ("names of timm", _TIMM_VIT),
    ):
        candidates.append((title, {name: _renamed(bare, rules) for name, bare in plain.items()}))
    title, best = max(candidates, key=lambda one: len(own.keys() & set(one[1].values())))
    if title:
        notes.append(f"{title} renamed")
    names = {name: own.get(bare, bare) for name, bare in best.items()}
    if renamed := _match_leftovers(names, found, expected):
        names |= renamed
        notes.append(", ".join(f"{old} taken as {new}" for old, new in renamed.items()))
    return Match(names, notes)


def _common_prefix(names: Collection[str]) -> str:
    """The prefixes, one after the other, that all names have except those of the normalization."""
    rest, prefix = [name for name in names if name not in NORMALIZATION], ""
    while rest and (more := next((p for p in PREFIXES if all(n.startswith(p) for n in rest)), "")):
        prefix += more
        rest = [name.removeprefix(more) for name in rest]
    return prefix


def _match_leftovers(
    names: dict[str, str], found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Unmatched tensors of one layer whose shapes only one unmatched layer of the network has, such as the head's."""
    missing = expected.keys() - set(names.values())
    unknown = {name for name, own in names.items() if own not in expected}
    renamed = {}
    for name in sorted(unknown):
        kind = name.rpartition(".")[2]

        def alike(other: str, shape: tuple[int, ...], kind: str = kind) -> bool:
            return other.rpartition(".")[2] == kind and shape == found[name]  # noqa: B023  # called at once

        here = [other for other in unknown if alike(other, found[other])]
        there = [other for other in missing if alike(other, expected[other])]
        if len(here) == len(there) == 1 and kind in ("weight", "bias"):
            renamed[name] = there[0]
    return renamed


def describe_misfit(names: Mapping[str, str], expected: Collection[str], architecture: str) -> str | None:
    """Which tensors are missing or unexpected, with the nearest name that exists; None if none is."""
    by_own = {own: name for name, own in names.items()}
    missing = [name for name in expected if name not in by_own and not name.endswith(COUNTER)]
    missing = [name for name in missing if name not in NORMALIZATION]
    unexpected = [name for name, own in names.items() if own not in expected]
    for problem, some, others in (
        ("missing", missing, [by_own[own] for own in by_own if own not in expected] or list(names)),
        ("unexpected", unexpected, missing or list(expected)),
    ):
        if some:
            listed = ", ".join(_with_nearest(name, others) for name in sorted(some)[:MAX_NAMES])
            more = f" and {len(some) - MAX_NAMES} more" if len(some) > MAX_NAMES else ""
            return f"{problem} tensors: {listed}{more}; {architecture} has {len(expected)} tensors"
    return None


def _with_nearest(name: str, others: Collection[str]) -> str:
    close = get_close_matches(name, others, 1, 0.7)
    return f"{name[:100]!r}" + (f" (nearest: {close[0][:100]!r})" if close else "")


def read_normalization(labels: Mapping[str, str], channels: int) -> dict[str, Tensor] | None:
    """``mean`` and ``std`` of the metadata, ``[1, channels, 1, 1]``; None if it has neither.

    They are JSON lists, or numbers separated by commas, for pixels from 0 to 1. Raises ValueError.
    """
    given = {name: labels[name] for name in NORMALIZATION if name in labels}
    if not given:
        return None
    values = {}
    for name in NORMALIZATION:
        text = given.get(name)
        try:
            if text is None:
                raise ValueError
            numbers = [float(part) for part in json.loads(f"[{text.strip().strip('[]()')}]")]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"metadata {name} {text!r} is not allowed; {channels} numbers, such as "
                f'"{", ".join(["0.5"] * channels)}", in both mean and std are'
            ) from error
        if len(numbers) != channels:
            raise ValueError(f"metadata {name} {text!r} has {len(numbers)} numbers; {channels} are needed")
        values[name] = torch.tensor(numbers, dtype=torch.float32).reshape(1, channels, 1, 1)
    if not (values["std"] > 0).all():
        raise ValueError(f"metadata std {given['std']!r} is not allowed; numbers above 0 are")
    return values
