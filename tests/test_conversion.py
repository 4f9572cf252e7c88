"""`bdlab models convert`: what is found in a file of torch.save, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bdlab.conversion import convert_checkpoint
from bdlab.errors import MissingPackageError, UnsuitableFileError
from tests.test_cli import fails

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def converted(folder: Path, content: Any, key: str | None = None) -> tuple[str, dict[str, Any], Any]:
    torch.save(content, folder / "in.pth")
    said = convert_checkpoint(folder / "in.pth", folder / "out.safetensors", key)
    with safe_open(folder / "out.safetensors", framework="pt") as file:
        return said, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 1, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        {"model": STATE, "args": {"lr": 0.1}},
        {"checkpoint": {"net": STATE}, "best": 0.9},
        {"ema": {k: -v for k, v in STATE.items()}, "state_dict": STATE},
    ],
    ids=["plain", "state_dict", "model", "nested", "two"],
)
def test_the_state_dict_is_found(tmp_path: Path, content: Any) -> None:
    said, tensors, _ = converted(tmp_path, content)
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert said.startswith("2 tensors of ")
    assert ("not taken: 'ema'" in said) == ("ema" in content)


def test_another_entry_can_be_named(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "teacher": {"model": {k: v + 5 for k, v in STATE.items()}}}
    _, tensors, _ = converted(tmp_path, content, "teacher.model")
    assert torch.equal(tensors["fc.bias"], torch.full((2,), 5.0))
    with pytest.raises(UnsuitableFileError, match=r"those are 'state_dict', 'teacher\.model'"):
        converted(tmp_path, content, "student")


def test_tensors_that_share_memory_and_the_normalization_beside_them(tmp_path: Path) -> None:
    weight = torch.ones(4, 3)
    content = {"net": {"a.weight": weight, "b.weight": weight.T}, "mean": [0.1, 0.2], "std": (1, 2)}
    _, tensors, metadata = converted(tmp_path, content)
    assert tensors["b.weight"].shape == (3, 4)
    assert metadata == {"mean": "[0.1, 0.2]", "std": "[1.0, 2.0]"}


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/this-must-never-be-touched"),))


def test_what_cannot_be_converted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in (
        (Bomb(), "tensors and plain values only (UnpicklingError"),
        (torch.nn.Linear(1, 1), "tensors and plain values only (UnpicklingError"),
        (
            {"epoch": 3, "loss": 0.5},
            "there is no dictionary of tensors in it; it is a dict with 'epoch', 'loss'",
        ),
        (torch.ones(3), "there is no dictionary of tensors in it; it is a Tensor"),
    ):
        with pytest.raises(UnsuitableFileError) as caught:
            converted(tmp_path, content)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/this-must-never-be-touched").exists()
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert "junk.pth: not a file of torch.save" in fails(2, "models", "convert", str(tmp_path / "junk.pth"))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingPackageError, match="torch is not installed"):
        convert_checkpoint(tmp_path / "junk.pth", tmp_path / "out.safetensors")


def test_a_failed_conversion_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted(tmp_path, STATE)
    before = (tmp_path / "out.safetensors").read_bytes()

    def fail(_tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        converted(tmp_path, {"model": STATE})
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "in.pth")
    with pytest.raises(
        UnsuitableFileError, match=r"nowhere/out\.safetensors: cannot be written: No such file"
    ):
        convert_checkpoint(tmp_path / "in.pth", tmp_path / "nowhere/out.safetensors")
