"""Checkpoints that earlier versions stored: layers had names of our own, and two architectures had another depth."""

import re
from collections.abc import Iterable

from torch import Tensor

from app.specs.model import ModelSpec, PreActResNet18, SmallCnn

_OLD_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
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
INNER = "network."  # prefix of the tensors of a network that a `TriggerInput` contains


def rename_tensor(model: ModelSpec, name: str) -> str:
    """The present name of a tensor that an earlier version may have stored under another one."""
    prefix, bare = (INNER, name.removeprefix(INNER)) if name.startswith(INNER) else ("", name)
    for old, new in _OLD_NAMES.get(model.name, ()):
        bare = re.sub(old, new, bare)
    return prefix + bare


def rename_tensors(model: ModelSpec, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` under their present names."""
    return {rename_tensor(model, name): tensor for name, tensor in tensors.items()}


def find_variant(model: ModelSpec, names: Iterable[str]) -> ModelSpec:
    """The variant of ``model`` that has tensors of these (present) ``names``; ``model`` itself if it has them."""
    bare = {name.removeprefix(INNER) for name in names}
    match model:
        case SmallCnn(blocks=None) if "blocks.2.0.weight" in bare:
            return model.model_copy(update={"blocks": 5 if "blocks.4.0.weight" in bare else 3})
        case PreActResNet18(final_norm=False) if "bn.weight" in bare:
            return model.model_copy(update={"final_norm": True})
    return model
