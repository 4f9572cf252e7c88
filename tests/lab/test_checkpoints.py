"""Checkpoints as people have them: names, prefixes, types and normalization of other projects."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.specs.facts import Shape
from app.specs.model import ModelSpec, PreActResNet18, ResNet18, SmallCnn, Torchvision
from worker.lab.networks import build_network
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.checkpoints import match_names, shapes_of
from worker.lab.user_model import BadModelError, UserModel, build_empty_network, load_user_model

SHAPE = Shape(channels=3, height=32, width=32, classes=10)
MODEL = SmallCnn(width=4)
Tensors = dict[str, torch.Tensor]


def tensors(model: ModelSpec = MODEL) -> Tensors:
    """Of a network, without normalization."""
    return {n: t for n, t in build_network(model, SHAPE, 0).state_dict().items() if n not in ("mean", "std")}


def load(folder: Path, content: Tensors, model: ModelSpec = MODEL, **labels: str) -> UserModel:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, path, labels or None)
    return load_user_model(path, model, SHAPE)


def refused(folder: Path, content: Tensors, model: ModelSpec = MODEL, **labels: str) -> str:
    with pytest.raises(BadModelError) as caught:
        load(folder, content, model, **labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
def test_prefixes_are_removed(tmp_path: Path, prefix: str) -> None:
    loaded = load(tmp_path, {prefix + name: tensor for name, tensor in tensors().items()})
    assert f"prefix {prefix!r} removed" in loaded.mapped or prefix == "model."
    assert torch.equal(loaded.tensors["head.weight"], tensors()["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    content = {n: t.to(dtype) if t.is_floating_point() else t.int() for n, t in tensors().items()}
    loaded = load(tmp_path, content)
    assert "converted to F32" in loaded.mapped
    for name, tensor in tensors().items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.allclose(loaded.tensors[name].double(), tensor.double(), atol=0.01)


def test_counters_may_be_missing(tmp_path: Path) -> None:
    loaded = load(tmp_path, {n: t for n, t in tensors().items() if not n.endswith("num_batches_tracked")})
    assert "num_batches_tracked of 5 layers set to 0" in loaded.mapped


def test_normalization_of_the_metadata(tmp_path: Path) -> None:
    loaded = load(tmp_path, tensors(), mean="[0.1, 0.2, 0.3]", std="0.4, 0.5, 0.6")
    assert loaded.mapped == "mean and std from the metadata"
    assert loaded.tensors["mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert loaded.tensors["std"].shape == (1, 3, 1, 1)
    for labels, said in (
        ({"mean": "0.5, 0.5, 0.5"}, "metadata std None is not allowed"),
        ({"mean": "0.5", "std": "0.5"}, "metadata mean '0.5' has 1 numbers; 3 are needed"),
        ({"mean": "a, b, c", "std": "1, 1, 1"}, "metadata mean 'a, b, c' is not allowed"),
        ({"mean": "0, 0, 0", "std": "1, 0, 1"}, "metadata std '1, 0, 1' is not allowed"),
    ):
        assert said in refused(tmp_path, tensors(), **labels)


def test_without_any_normalization_the_line_says_which_is_used(tmp_path: Path) -> None:
    loaded = load(tmp_path, tensors())
    assert loaded.mapped.startswith("no normalization given: images are normalized by mean and deviation of")
    assert "mean" not in loaded.tensors


def test_torchvisions_resnet18_with_its_stem(tmp_path: Path) -> None:
    """As torchvision has it: 7x7 convolution and pooling, which our network has for large images only."""
    net = torchvision_models().resnet18(num_classes=10).eval()
    loaded = load(tmp_path, net.state_dict(), ResNet18(), mean="0, 0, 0", std="1, 1, 1")
    assert "stem is original" in loaded.mapped
    ours = build_empty_network(loaded.variant, SHAPE, False).eval()
    ours.load_state_dict(loaded.tensors)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours(x), net(x), atol=1e-5)


def test_names_of_pytorch_cifar(tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        return name.replace("downsample.", "shortcut.").replace("fc.", "linear.")

    own = tensors(ResNet18())
    loaded = load(tmp_path, {renamed(name): tensor for name, tensor in own.items()}, ResNet18())
    assert "names of pytorch-cifar renamed" in loaded.mapped
    assert loaded.tensors.keys() == own.keys()
    preact = tensors(PreActResNet18())
    other = {f"module.{n.replace('linear.', 'classifier.')}": t for n, t in preact.items()}
    loaded = load(tmp_path, other, PreActResNet18())
    assert "classifier.weight taken as linear.weight" in loaded.mapped.replace("module.", "")
    assert loaded.tensors.keys() == preact.keys()


def test_what_does_not_fit_is_named_with_the_nearest_name(tmp_path: Path) -> None:
    content = {name.replace("blocks.1.0", "blocks.1.conv"): tensor for name, tensor in tensors().items()}
    content |= {"blocks.2.conv.weight": content.pop("blocks.2.0.weight")}
    # Both convolutions have other shapes than each other, so both are found by shape; a third one is not.
    assert load(tmp_path, content).mapped.startswith("blocks.1.conv.weight taken as blocks.1.0.weight")
    del content["blocks.1.conv.weight"]
    content["blocks.1.conv.weights"] = torch.zeros(3)
    said = refused(tmp_path, content)
    assert said == (
        "missing tensors: 'blocks.1.0.weight' (nearest: 'blocks.1.conv.weights'); small_cnn has 34 tensors"
    )
    extra = tensors() | {"head.bais": torch.zeros(10), "optimizer": torch.zeros(1)}
    assert "unexpected tensors: 'head.bais' (nearest: 'head.bias'), 'optimizer';" in refused(tmp_path, extra)
    twice = tensors() | {"fc.bias": torch.zeros(3)}
    assert "unexpected tensors: 'fc.bias'" in refused(tmp_path, twice)
    assert "'head.bias' is of type BOOL; F32" in refused(
        tmp_path, tensors() | {"head.bias": torch.ones(10).bool()}
    )


def test_a_small_file_that_names_a_large_architecture_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-H/14 has 632 million parameters."""
    devices = set()

    def build(*arguments: Any) -> Any:
        devices.add(torch.get_default_device().type)
        return build_network(*arguments)

    monkeypatch.setattr("worker.lab.user_model.build_network", build)
    said = refused(tmp_path, {"conv_proj.bias": torch.zeros(1280)}, Torchvision(architecture="vit_h_14"))
    assert said.startswith("missing tensors: ")
    assert devices == {"meta"}


def test_models_of_torchvisions_zoo(tmp_path: Path) -> None:
    spec = Torchvision(architecture="squeezenet1_1")
    net = torchvision_models().squeezenet1_1(num_classes=10).eval()
    loaded = load(tmp_path, net.state_dict(), spec)
    assert loaded.tensors.keys() == {f"model.{name}" for name in net.state_dict()}


def test_names_of_timms_vit() -> None:
    """Those of timm.models.vision_transformer.VisionTransformer, on shapes alone."""
    spec = Torchvision(architecture="vit_b_16")
    with torch.device("meta"):
        expected = shapes_of(build_network(spec, SHAPE, 0).state_dict())
    width = 768
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 65, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (10, width),
        "head.bias": (10,),
    }
    sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(12):
        for norm in ("norm1", "norm2"):
            found |= {f"blocks.{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for layer, (rows, columns) in sizes.items():
            found[f"blocks.{block}.{layer}.weight"] = (rows * width, columns * width)
            found[f"blocks.{block}.{layer}.bias"] = (rows * width,)
    match = match_names(spec, found, expected)
    assert match.notes == ["names of timm renamed"]
    assert set(match.names.values()) == expected.keys() - {"mean", "std"}
    for name, own in match.names.items():
        assert found[name] == expected[own], name
