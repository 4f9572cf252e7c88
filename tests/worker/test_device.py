"""What a worker says of its device, with a stand-in for the driver's tool: real GPUs are not everywhere."""

import time
from pathlib import Path

import pytest

from worker import device

LINES = """\
0, GPU-aaaaaaaa-1111, NVIDIA H100 80GB HBM3, 81559, 1024
1, GPU-bbbbbbbb-2222, NVIDIA A100-SXM4-40GB, 40960, [N/A]
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{LINES}END\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


@pytest.mark.parametrize(
    ("visible", "kind", "name"),
    [
        (None, "gpu", "NVIDIA H100 80GB HBM3"),
        ("1", "gpu", "NVIDIA A100-SXM4-40GB"),
        ("1,0", "gpu", "NVIDIA A100-SXM4-40GB"),
        ("GPU-bbbbbbbb", "gpu", "NVIDIA A100-SXM4-40GB"),
        ("", "cpu", None),
        ("-1", "cpu", None),
        ("7,0", "cpu", None),
    ],
)
def test_the_first_visible_gpu_is_the_device(
    tool: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, kind: str, name: str | None
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = device.find()
    assert found.kind == kind
    assert found.name == name or (name is None and "threads" in found.name)


def test_memory_is_read_without_waiting(tool: Path) -> None:
    watch = device.MemoryWatch(device.find())
    first = watch.read()
    assert first["device_total"] is None  # the tool has been asked, and answers beside the worker's own work
    deadline = time.monotonic() + 10
    while (found := watch.read())["device_total"] is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (found["device_total"], found["device_used"]) == (81559 * 2**20, 1024 * 2**20)
    assert 0 < (found["host_used"] or 0) < (found["host_total"] or 0)


def test_a_driver_that_does_not_answer_is_no_gpu(tool: Path) -> None:
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'\nexit 9\n")
    assert device.find().kind == "cpu"


def test_a_container_has_its_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("4096\n")
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    assert device.host_memory() == {"host_total": 1048576, "host_used": 4096}
    (tmp_path / "memory.max").write_text("max\n")
    assert (device.host_memory()["host_total"] or 0) > 1048576
