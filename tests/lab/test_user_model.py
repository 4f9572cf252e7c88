"""User models: what is refused, and that starting from one gives the numbers of training it."""

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN, Shape
from app.specs.model import ResNet18, SmallCnn
from app.specs.stages import plan
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore, experiment
from tests.quick import QUICK
from worker.lab.contracts import SpecError
from worker.lab.experiment import run_experiment
from worker.lab.networks import build_network
from worker.lab.user_model import BadModelError, load_user_model, read_exported_spec, read_header

DIGITS = BUILT_IN["digits"].shape
MODEL = SmallCnn(width=4)
TUNING = {"name": "fine_tuning", "steps": 8, "clean_ratio": 0.1}
SPEC: dict[str, Any] = {**QUICK, "seeds": [0], "defenses": [TUNING]}
NAB = {"name": "nab", "isolation_epochs": 2, "ranking_window": 1, "labelling_epochs": 2, "clean_ratio": 0.1}
Tensors = dict[str, torch.Tensor]


def tensors() -> Tensors:
    return dict(build_network(MODEL, DIGITS, 0).state_dict())


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        """A valid model with ``changes``: tensor name, with __ for dots, to another tensor or to None."""
        content = tensors()
        for name, tensor in changes.items():
            content.pop(name.replace("__", "."), None)
            if tensor is not None:
                content[name.replace("__", ".")] = tensor
        save_file(content, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return make


def refused(path: Path, model: Any = MODEL, shape: Shape = DIGITS) -> str:
    with pytest.raises(BadModelError) as caught:
        load_user_model(path, model, shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_a_valid_file_is_read(file: Callable[..., Path]) -> None:
    model = load_user_model(file(), MODEL, DIGITS)
    assert torch.equal(model.tensors["head.weight"], tensors()["head.weight"])
    assert not model.adds_trigger


def test_names_shapes_and_types_must_be_those_of_the_architecture(file: Callable[..., Path]) -> None:
    assert refused(file(head__bias=None)).startswith("missing tensors: 'head.bias'; small_cnn has")
    assert "unexpected tensors: 'extra'" in refused(file(extra=torch.zeros(1)))
    assert "'head.bias' has the shape [9], not [10]" in refused(file(head__bias=torch.zeros(9)))
    assert "'head.bias' is of type BOOL; F32, F16" in refused(file(head__bias=torch.zeros(10).bool()))
    assert "; resnet18 has 124 tensors" in refused(file(), ResNet18())
    assert "has the shape" in refused(file(), MODEL, BUILT_IN["gtsrb"].shape)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(file: Callable[..., Path], value: float) -> None:
    bias = torch.zeros(10)
    bias[3] = value
    assert refused(file(head__bias=bias)) == "tensor 'head.bias' holds NaN or infinity"


def test_finite_numbers_with_non_finite_logits(file: Callable[..., Path]) -> None:
    assert refused(file(std=torch.zeros(1, 1, 1, 1))) == "the model's logits for random images are not finite"


def test_large_images_cost_no_memory(tmp_path: Path) -> None:
    wide, shape = SmallCnn(width=64), Shape(channels=3, height=1024, width=1024, classes=2)
    save_file(dict(build_network(wide, shape, 0).state_dict()), tmp_path / "wide.safetensors")
    code = (
        "import resource, sys; from pathlib import Path; from app.specs.facts import Shape\n"
        "from app.specs.model import SmallCnn; from worker.lab.user_model import load_user_model\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        f"path, shape = Path({str(tmp_path / 'wide.safetensors')!r}), Shape(**{shape.model_dump()})\n"
        "load_user_model(path, SmallCnn(width=64), shape)\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 1024  # KiB; a feature map of such images has 512 MiB


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/this-must-never-be-touched"),))


def test_other_formats_are_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(tensors(), path)
    assert "looks like a zip, as torch.save writes it" in refused(path)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "looks like a pickle" in refused(path)
    assert not Path("/tmp/this-must-never-be-touched").exists()
    for junk in (b"", b"abc", bytes(8), b"\xff" * 100, struct.pack("<Q", 10) + b"{}"):
        path.write_bytes(junk)
        assert "not a valid safetensors file" in refused(path)
    assert "No such file" in refused(tmp_path / "nothing")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,
        b"not json",
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}},
        {"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 10**30]}},
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: Any) -> None:
    assert "not a valid safetensors file" in refused(with_header(tmp_path / "x", header))


def test_sizes_in_the_header_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    huge = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    assert "not fully covered" in refused(with_header(tmp_path / "x", {"a": huge}, bytes(4)))
    four = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    assert "invalid offset" in refused(with_header(tmp_path / "x", {"a": four, "b": four}, bytes(8)))
    assert "not fully covered" in refused(with_header(tmp_path / "x", {"a": four}, bytes(8)))
    long = with_header(tmp_path / "x", b" " * 1_000_001)
    assert "at most 1000000 are accepted" in refused(long)
    small = {
        name: {
            "dtype": "F32" if t.is_floating_point() else "I64",
            "shape": list(t.shape),
            "data_offsets": [0, 0],
        }
        for name, t in tensors().items()
    }
    assert "invalid shape, data type, or offset" in refused(with_header(tmp_path / "x", small))


@pytest.fixture(scope="module")
def trained() -> MemoryRecorder:
    return experiment({**SPEC, "reference": True, "defenses": [TUNING, NAB]})


@pytest.fixture
def checkpoint(trained: MemoryRecorder, tmp_path: Path) -> Path:
    path = tmp_path / "undefended.safetensors"
    path.write_bytes(trained.files["seed-0/undefended/model.safetensors"])
    return path


def start_from(path: Path | None, spec: dict[str, Any], store: MemoryStore | None = None) -> MemoryRecorder:
    recorder = MemoryRecorder()
    parsed = ExperimentSpec.model_validate(spec)
    run_experiment(parsed, recorder, store or MemoryStore(), data_dir=DIGITS_ONLY, device="cpu", victim=path)
    assert not recorder.failures
    return recorder


def numbers(recorder: MemoryRecorder, arm: str) -> dict[str, float | None]:
    return {name: value for name, value in recorder.results[arm, 0].items() if name != "seconds"}


def test_starting_from_a_checkpoint_gives_the_numbers_of_training_it(
    trained: MemoryRecorder, checkpoint: Path
) -> None:
    store = MemoryStore()
    recorder = start_from(checkpoint, SPEC, store)
    assert numbers(recorder, "undefended") == numbers(trained, "undefended")
    # The repair's random stream follows from its stage's key, so its numbers are reproducible.
    assert numbers(recorder, "fine_tuning") != numbers(recorder, "undefended")
    again = start_from(checkpoint, SPEC)
    assert numbers(again, "fine_tuning") == numbers(recorder, "fine_tuning")
    assert store.computed == ["poisoned_set", "victim", "repair"]


def test_with_no_attack_the_user_model_is_the_clean_arm(trained: MemoryRecorder, checkpoint: Path) -> None:
    recorder = start_from(checkpoint, {**SPEC, "attack": {"name": "none"}})
    assert list(recorder.results) == [("clean", 0), ("fine_tuning", 0)]
    of_undefended = trained.results["undefended", 0]["clean_accuracy"]
    assert recorder.results["clean", 0]["clean_accuracy"] == of_undefended


def test_the_reference_is_trained_and_training_defenses_ignore_the_victim(
    trained: MemoryRecorder, checkpoint: Path
) -> None:
    recorder = start_from(checkpoint, {**SPEC, "reference": True, "defenses": [NAB]})
    for arm in ("clean", "nab"):
        assert numbers(recorder, arm) == numbers(trained, arm), arm


def test_a_model_that_adds_a_trigger_can_be_measured_but_not_repaired(
    trained: MemoryRecorder, tmp_path: Path
) -> None:
    path = tmp_path / "nab.safetensors"
    path.write_bytes(trained.files["seed-0/nab/model.safetensors"])
    recorder = start_from(path, {**SPEC, "defenses": []})
    assert numbers(recorder, "undefended")["clean_accuracy"] == numbers(trained, "nab")["clean_accuracy"]
    with pytest.raises(SpecError, match=r"defenses\.0\.name"):
        start_from(path, SPEC)


def test_exported_checkpoints_name_their_spec(checkpoint: Path) -> None:
    labels = read_header(checkpoint).labels
    spec = read_exported_spec(labels)
    assert spec is not None
    assert (spec.model, spec.dataset.name, labels["backdoored"]) == (MODEL, "digits", "true")
    assert read_exported_spec({}) is None
    with pytest.raises(BadModelError, match="name the model"):
        read_exported_spec({"spec": '{"model": {"name": "transformer"}}'})


def test_the_file_that_the_spec_names_must_be_given(checkpoint: Path) -> None:
    spec = {**SPEC, "victim": {"model_id": "0192f3c0-0000-7000-8000-000000000000"}}
    with pytest.raises(SpecError, match=r"victim\.model_id"):
        start_from(None, spec)
    wider = {**SPEC, "model": {"name": "small_cnn", "width": 8}}
    with pytest.raises(BadModelError, match="has the shape"):
        start_from(checkpoint, wider)


def test_keys_depend_on_the_file_and_not_on_its_id() -> None:
    spec = {**SPEC, "reference": True, "defenses": [TUNING, NAB]}

    def keys(version: str, **more: Any) -> dict[tuple[str | None, str], str]:
        parsed = ExperimentSpec.model_validate({**spec, **more})
        return {(s.arm, s.kind): s.key for s in plan(parsed, victim_version=version)}

    one, other = ({"victim": {"model_id": f"0192f3c0-0000-7000-8000-00000000000{i}"}} for i in "12")
    assert keys("a" * 64, **one) == keys("a" * 64, **other)
    a, b, none = keys("a" * 64, **one), keys("b" * 64, **one), keys("")
    changed = {key for key in a if a[key] != b[key]}
    assert changed == {("undefended", "victim"), ("fine_tuning", "repair")}
    assert {key for key in a if a[key] != none[key]} == changed


def test_fields_that_were_added_later_leave_hash_and_random_streams_as_they_were() -> None:
    """Specs that do not use them have the canonical form from before they existed."""
    spec = ExperimentSpec.model_validate(QUICK)
    document = spec.model_dump(mode="json")
    assert "victim" not in document
    assert not {"start", "fine_tuning"} & document["training"].keys()
    training = {**QUICK["training"], "start": "scratch"}
    same = ExperimentSpec.model_validate({**QUICK, "victim": None, "training": training})
    assert same.spec_hash == spec.spec_hash
    assert plan(same)[-1].stream == plan(spec)[-1].stream


def test_the_command_line_accepts_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "defenses": []}))
    done = subprocess.run(
        [sys.executable, "-m", "worker.lab", "spec.json", "--out", "out", "--victim", str(checkpoint)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "out/log.txt").read_text()
    assert "victim: done in 0.0 s" in log
