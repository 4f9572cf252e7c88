"""Torchvision's models as victims: what the service knows of them, and every method on them."""

import math
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load
from torch import Tensor, nn

from app.core.validation import members
from app.specs.checks import find_problems
from app.specs.defenses.base import CleanSetDefense, Defense
from app.specs.defenses.repair import IBau
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN, DatasetFacts, Shape
from app.specs.model import ResNet18, Timm, Torchvision
from app.specs.models import timm_architectures
from app.specs.models.architectures import ARCHITECTURES
from tests.lab.defenses.cases import SHORT
from tests.lab.memory import MemoryRecorder, MemoryStore
from worker.lab.contracts import SpecError
from worker.lab.data import files
from worker.lab.defenses.i_bau import hypergradient_objective
from worker.lab.experiment import run_experiment
from worker.lab.networks import Network, architectures, build_network
from worker.lab.networks.checkpoints import find_variant, match_names, shapes_of
from worker.lab.networks.loading import load_model
from worker.lab.networks.traced import TracedNetwork
from worker.lab.training import Batch

CIFAR = BUILT_IN["cifar10"]
FIRST_STEPS = {
    "abl": {"isolation_epochs": 1, "ranking_window": 1, "finetune_epochs": 1, "unlearning_epochs": 1},
    **SHORT,
    "abl_plus": {},
    "fine_tuning": {"steps": 1},
    "fine_pruning": {"steps": 1, "max_accuracy_drop": 1.0},
    "nad": {
        "teacher_steps": 1,
        "steps": 1,
        "betas": [1, 1, 1],
        "first_learning_rate": 0.01,
    },  # those of its authors need a trained network
    "mcr": {"tuning_steps": 1, "steps": 1},
    "ft_sam": {"steps": 1, "learning_rate": 0.001},  # its default needs a trained network, on VGG-19-BN
    "anp": {"steps": 1},
    "i_bau": {"rounds": 1, "steps": 1},
    "rnp": {"unlearning_steps": 1, "recovering_steps": 1},
    "sau": {"steps": 1, "attack_steps": 1},
    "npd": {"warm_up_steps": 1, "steps": 1},
    "bti_dbf": {"rounds": 1, "generator_steps": 1, "mask_steps": 1, "trigger_steps": 1, "steps": 1},
    "fe_tuning": {"steps": 1},
    "fst": {"steps": 1},
    "strip": {"overlays": 1},
    "neural_cleanse": {"epochs": 1, "anomaly_threshold": 0.1, "unlearning_epochs": 1, "success": 0.01},
    "nab": {
        "isolation_epochs": 1,
        "ranking_window": 1,
        "labelling_epochs": 1,
        "labelling_learning_rate": 0.001,  # at its default VGG-19-BN diverges on seven images
    },
    "cbd": {"biased_epochs": 1, "epochs": 1},
    "dbd": {"feature_epochs": 1, "head_epochs": 1, "mixmatch_epochs": 1, "mixmatch_steps": 1},
    "d_st": {**SHORT["d_st"], "suspected_ratio": 0.1},
    "d_br": {**SHORT["d_br"], "suspected_ratio": 0.1},
    "meta_sift": {**SHORT["meta_sift"], "sifters": 1},
    "confusion_training": {"epochs": 1, "confusion_steps": 1},
    "asd": {"growth_epochs": 1, "loss_epochs": 0, "meta_epochs": 1, "mixmatch_steps": 1},
}
"""Every defense with as little training as it allows."""
LARGE = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "resnet34",
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "vgg19_bn",
    "vit_b_16",
)
"""Architectures that take longer than tests may, the shortest one first."""
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")
SPECS: dict[str, type[Defense]] = {
    spec.model_fields["name"].default: spec
    for spec in members(ExperimentSpec.model_fields["defenses"].annotation)
}


def zoo(name: str) -> dict[str, Any]:
    return {"name": "torchvision", "architecture": name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder: noise in three classes, whose mean levels differ; `tiny28` is gray, as MNIST."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)

    def images(count: int, side: int) -> tuple[Any, Any]:
        labels = np.arange(count) % 3
        channels = 1 if side == 28 else 3
        noise = draw.integers(0, 60, (count, channels, side, side)) + 90 * labels[:, None, None, None]
        return noise.astype(np.uint8), labels.astype(np.int64)

    for key, count, side in (
        ("tiny16", 15, 16),
        ("tiny28", 15, 28),
        ("tiny32", 15, 32),
        ("small32", 120, 32),
    ):
        (x, y), (x_test, y_test) = images(count, side), images(count * 2 // 5, side)
        path = folder / "imported" / f"{key}.safetensors"
        names = ("a", "b", "c")
        files.write(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test, class_names=names)
    return folder


def run(model: dict[str, Any], folder: Path, side: int, defenses: Iterable[str]) -> MemoryRecorder:
    """One epoch of the victim and the first step of every defense, on one thread."""
    torch.set_num_threads(1)
    spec = {
        "dataset": {"name": "imported", "key": f"tiny{side}"},
        "model": model,
        "attack": {"name": "badnets", "size": 3, "poisoning_rate": 0.2},
        "training": {"epochs": 1, "batch_size": 12, "learning_rate": 0.01},
        "defenses": [
            {"name": one, **FIRST_STEPS[one]}
            | ({"clean_ratio": 0.5} if issubclass(SPECS[one], CleanSetDefense) else {})
            for one in defenses
        ],
    }
    recorder = MemoryRecorder()
    run_experiment(
        ExperimentSpec.model_validate(spec),
        recorder,
        MemoryStore(),
        data_dir=folder,
        device="cpu",
        checkpoint_seconds=1e9,
    )
    return recorder


def check_defenses(
    model: dict[str, Any],
    folder: Path,
    side: int,
    defenses: Iterable[str] | None = None,
) -> None:
    """Each of the defenses that the architecture allows ends, and the checkpoint of every arm loads again."""
    spec = ExperimentSpec.model_validate({"model": model}).model
    traits = spec.traits(side)
    chosen = [
        one
        for one in defenses or FIRST_STEPS
        if (traits.batch_norm or not SPECS[one].needs_batch_norm)
        and (traits.spatial_maps or not SPECS[one].needs_spatial_maps)
    ]
    channels = 1 if side == 28 else 3
    facts = Shape(channels=channels, height=side, width=side, classes=3)
    if not chosen:
        pytest.skip("the architecture lacks what these defenses need")
    recorder = run(model, folder, side, chosen)
    assert not recorder.failures
    assert [arm for arm, _ in recorder.results] == ["undefended", *chosen]
    for arm, values in recorder.results.items():
        assert all(v is None or math.isfinite(v) for v in values.values()), arm
        network = load_model(spec, facts, load(recorder.files[f"seed-0/{arm[0]}/model.safetensors"]))
        assert network(torch.zeros(1, channels, side, side)).shape == (1, 3)


def test_every_defense_runs_on_a_network_for_mnist(folder: Path) -> None:
    check_defenses({"name": "small_cnn", "width": 4}, folder, 28)


@pytest.mark.slow
@pytest.mark.long  # a minute; the network for MNIST has all defenses, too
def test_every_defense_runs_on_a_convolutional_head(folder: Path) -> None:
    check_defenses(zoo("squeezenet1_1"), folder, 16)


def test_defenses_that_look_inside_run_on_batch_normalization(folder: Path) -> None:
    check_defenses(zoo("resnet18"), folder, 16, ["anp", "nad", "flare"])  # the others: LARGE


@pytest.mark.long  # a minute to half an hour for all defenses on a network of 2 to 140 million parameters
@pytest.mark.parametrize("defense", FIRST_STEPS)
@pytest.mark.parametrize("name", LARGE)
def test_every_defense_runs_on_the_usual_networks(name: str, defense: str, folder: Path) -> None:
    least = Torchvision(architecture=name).traits(32).least_side  # type: ignore[arg-type]
    # At 16 px the last layers of these see one pixel, and after one epoch their output is not finite.
    side = 32 if name in ("efficientnet_b0", "mobilenet_v3_large") else max(16, least)
    check_defenses(zoo(name), folder, side, [defense])  # one: three models of VGG-19-BN take 15 GB


@pytest.mark.long  # minutes each: networks of 20 and 86 million parameters in six trainings
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["vgg19_bn", "vit_b_16"])
def test_badnets_abl_and_three_repairs_end_to_end(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    short_abl = {"isolation_epochs": 2, "ranking_window": 1, "finetune_epochs": 1, "unlearning_epochs": 1}
    repairs = {"fine_tuning": {"steps": 4}, "fine_pruning": {"steps": 4}, "ft_sam": {"steps": 4}}
    spec = {
        "dataset": {"name": "imported", "key": "small32"},
        "model": zoo(name),
        "attack": {"name": "badnets"},
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
        "defenses": [
            {"name": "abl", **short_abl},
            *({"name": one, "clean_ratio": 0.3, **fields} for one, fields in repairs.items()),
        ],
    }
    recorder = MemoryRecorder()
    run_experiment(
        ExperimentSpec.model_validate(spec), recorder, MemoryStore(), data_dir=folder, device="cpu"
    )
    assert not recorder.failures
    assert [arm for arm, _ in recorder.results] == ["undefended", "abl", *repairs]
    for values in recorder.results.values():
        assert 0 <= float(values["clean_accuracy"] or 0) <= 1
        assert math.isfinite(float(values["clean_loss"] or 0))


def test_every_classification_model_of_torchvision_can_be_named() -> None:
    assert architectures.list_architectures() == list(ARCHITECTURES)
    with pytest.raises(ValidationError, match=r"did you mean vgg19_bn"):
        Torchvision.model_validate({"architecture": "vgg_19_bn"})
    with pytest.raises(ValidationError, match=r"stem 'small': vgg19_bn has no stem to adapt; allowed: auto"):
        Torchvision(architecture="vgg19_bn", stem="small")
    with pytest.raises(ValidationError, match=r"patch_size 4: resnet50 has no patches"):
        Torchvision(architecture="resnet50", patch_size=4)


@pytest.mark.parametrize(
    "name",
    [
        # minutes in all: shapes of eighty networks, some of them at eight sizes
        name
        if name in ("alexnet", "vgg11_bn", "squeezenet1_1")
        else pytest.param(name, marks=pytest.mark.long)
        for name in ARCHITECTURES
    ],
)
def test_the_table_of_architectures_says_what_tracing_finds(name: str) -> None:
    assert architectures.measure(name) == ARCHITECTURES[name]  # type: ignore[index]


def problems(model: dict[str, Any], height: int = 32, width: int = 32, *defenses: str) -> list[str]:
    facts = DatasetFacts(
        class_names=("a", "b"),
        channels=3,
        height=height,
        width=width,
        train_counts=(99, 99),
        test_counts=(9, 9),
    )
    spec = {
        "model": model,
        "attack": {"name": "none"},
        "defenses": [{"name": name} for name in defenses],
    }
    return [str(problem) for problem in find_problems(ExperimentSpec.model_validate(spec), facts)]


def test_images_that_an_architecture_cannot_take_are_refused_with_the_size_that_it_can() -> None:
    said = "dataset: 'images of {} pixels' is not allowed; allowed: "
    assert problems({"name": "small_cnn"}, 2, 2) == [
        said.format("2x2") + "at least 4x4 pixels, the least size of small_cnn"
    ]
    assert problems({"name": "small_cnn"}, 4, 4) == []
    assert problems({"name": "small_cnn", "blocks": 5}, 15, 20) == [
        said.format("20x15") + "at least 16x16 pixels, the least size of small_cnn"
    ]
    vgg = {"name": "torchvision", "architecture": "vgg19_bn"}
    assert problems(vgg) == []
    assert problems(vgg, 28, 28) == [
        said.format("28x28") + "at least 32x32 pixels, the least size of torchvision/vgg19_bn"
    ]
    vit = {"name": "torchvision", "architecture": "vit_b_16"}
    assert problems(vit) == []
    assert problems(vit, 32, 40) == [
        said.format("40x32") + "square images, since torchvision/vit_b_16 is built for one size"
    ]
    assert "a multiple of 4 pixels for torchvision/vit_b_16, such as 28 or 32" in problems(vit, 30, 30)[0]
    assert "a multiple of 16 pixels" in problems({**vit, "stem": "original"}, 40, 40)[0]


def test_a_defense_that_needs_what_an_architecture_lacks_is_refused() -> None:
    vit = {"name": "torchvision", "architecture": "vit_b_16"}
    names = ("anp", "nad", "abl", "ibd_psc", "sentinet", "teco")
    lacks = [problem for problem in problems(vit, 32, 32, *names) if problem.startswith("defenses")]
    assert [problem.partition(":")[0] for problem in lacks[2:]] == ["defenses.3.name", "defenses.4.name"]
    assert lacks[:2] == [
        "defenses.0.name: 'anp' is not allowed; allowed: a defense that does not need batch normalization: "
        "torchvision/vit_b_16 has none",
        "defenses.1.name: 'nad' is not allowed; allowed: a defense that does not need feature maps of three "
        "resolutions: torchvision/vit_b_16 has none",
    ]


@pytest.mark.parametrize("name", ["squeezenet1_1", "vgg11_bn", "mobilenet_v3_small", "resnet18"])
def test_a_channel_that_is_pruned_passes_nothing_on(name: str) -> None:
    """Zeroing the weights that read a channel equals zeroing the channel of the last map."""
    facts = Shape(channels=3, height=32, width=32, classes=3)
    network = build_network(Torchvision(architecture=name), facts, 0).eval()  # type: ignore[arg-type]
    assert isinstance(network, TracedNetwork)
    x = torch.rand(2, 3, 32, 32)
    channel = int(network.prunable_activity(x).mean(0).argmax())
    *_, last = network.layout.stages
    module = network.model.get_submodule(last)

    def silence(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(1, torch.tensor(channel), 0.0)

    before = network(x)
    handle = module.register_forward_hook(silence)
    expected = network(x)
    handle.remove()
    with torch.no_grad():
        network.prunable_weight[:, channel] = 0
    assert torch.allclose(network(x), expected, atol=1e-6)
    assert not torch.equal(before, expected)


def test_stages_of_resnet18_are_those_of_the_built_in_network() -> None:
    zoo = build_network(Torchvision(architecture="resnet18"), CIFAR, 0).eval()
    ours = build_network(ResNet18(), CIFAR, 0).eval()
    ours.load_state_dict({name.removeprefix("model."): t for name, t in zoo.state_dict().items()})
    x = torch.rand(2, 3, 32, 32)
    for a, b in zip(ours.stage_maps(x), zoo.stage_maps(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ours.features(x), zoo.features(x))
    logits, _ = zoo.logits_and_maps(x)
    assert torch.equal(logits, ours(x))


def test_dropout_follows_from_the_seed_alone(folder: Path) -> None:
    """SqueezeNet and MobileNet drop features at random; the same spec gives the same bits all the same."""
    first = run(zoo("squeezenet1_1"), folder, 16, [])
    torch.rand(1)  # moves the global generator on
    again = run(zoo("squeezenet1_1"), folder, 16, [])
    name = "seed-0/undefended/model.safetensors"
    assert first.files[name] == again.files[name]


class Attention(Network):
    """Attention across the four quarters of an image, as torchvision's ViT uses it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.unfold(x, 4, stride=4).transpose(1, 2)
        logits: Tensor = self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return logits


def test_i_bau_differentiates_attention_twice() -> None:
    network, labels = Attention(), torch.arange(4)
    batch = Batch(torch.rand(4, 1, 8, 8), labels, labels, torch.Generator().manual_seed(0))
    memory = {"delta": torch.full((1, 1, 8, 8), 0.1)}
    hypergradient_objective(IBau(), memory)(network, batch).backward()
    assert network.attention.in_proj_weight.grad is not None
    assert network.attention.in_proj_weight.grad.abs().sum() > 0


def timm_zoo(name: str) -> dict[str, Any]:
    return {"name": "timm", "architecture": name}


@needs_timm
def test_the_table_of_timm_says_what_tracing_finds() -> None:
    from worker.lab.networks.timm_zoo import measure  # noqa: PLC0415  # needs timm

    for name in ("resnet18", "vit_tiny_patch16_224", "convnext_atto"):
        assert measure(name) == timm_architectures.ARCHITECTURES[name]


def test_architectures_of_timm_are_refused_before_a_run() -> None:
    assert Timm(architecture="resnet18.a1_in1k").facts == Timm().facts
    with pytest.raises(ValidationError, match=r"not one of the \d+ models of timm .* did you mean resnet18"):
        Timm(architecture="resnet_18")
    with pytest.raises(ValidationError, match=r"patch_size 4: resnet18 has no patches"):
        Timm(patch_size=4)
    vit = timm_zoo("vit_tiny_patch16_224")
    assert problems(vit) == []
    assert (
        "a multiple of 4 pixels for timm/vit_tiny_patch16_224, such as 28 or 32" in problems(vit, 30, 30)[0]
    )
    assert problems(timm_zoo("convnext_atto"), 32, 32, "anp") == [
        "defenses.0.name: 'anp' is not allowed; allowed: a defense that does not need batch normalization: "
        "timm/convnext_atto has none"
    ]


@needs_timm
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18.a1_in1k", marks=pytest.mark.long),  # a minute; torchvision's is not long
        "vit_tiny_patch16_224",
    ],
)
def test_defenses_that_look_inside_run_on_architectures_of_timm(name: str, folder: Path) -> None:
    check_defenses(timm_zoo(name), folder, 16, ["anp", "nad", "fine_pruning"])


@pytest.mark.long  # minutes
@needs_timm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_every_defense_runs_on_architectures_of_timm(name: str, folder: Path) -> None:
    check_defenses(timm_zoo(name), folder, 16)


@needs_timm
@pytest.mark.parametrize(
    ("name", "stem"), [("resnet18", "small"), ("resnet18", "original"), ("convnext_atto", "small")]
)
def test_a_checkpoint_with_the_names_of_timm_loads(name: str, stem: str) -> None:
    facts = Shape(channels=3, height=32, width=32, classes=3)
    network = build_network(Timm.model_validate({"architecture": name, "stem": stem}), facts, 0).eval()
    file = {n.removeprefix("model."): t for n, t in network.state_dict().items()}
    spec = Timm(architecture=name)
    found = find_variant(spec, shapes_of(file))
    assert found.stem == stem
    again = build_network(found, facts, 1).eval()
    names = match_names(found, shapes_of(file), shapes_of(again.state_dict())).names
    again.load_state_dict({names[n]: t for n, t in file.items()})
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(network(x), again(x))


@needs_timm
def test_an_architecture_of_timm_that_cannot_be_built_ends_the_run_with_one_line(folder: Path) -> None:
    with pytest.raises(
        SpecError, match=r"^model.architecture: 'vgg11' cannot be built for images of 16x16 pixels: "
    ):
        run(timm_zoo("vgg11"), folder, 16, [])


def test_without_timm_the_run_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        SpecError,
        match=r"needs timm, which this worker lacks; get it with: pip install 'backdoor-lab\[timm\]'",
    ):
        run(timm_zoo("resnet26"), folder, 16, [])
