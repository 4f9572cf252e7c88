"""What a worker reports about its device, with a fake NVML."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from worker import device
from worker.lab import host_memory

GPUS = [
    SimpleNamespace(uuid="GPU-aaaaaaaa-1111", name="NVIDIA H100 80GB HBM3", total=81559 * 2**20, used=2**30),
    SimpleNamespace(uuid="GPU-bbbbbbbb-2222", name="NVIDIA A100-SXM4-40GB", total=40960 * 2**20, used=None),
]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver with `GPUS`; it cannot read the memory of the second."""

    def memory(gpu: SimpleNamespace) -> SimpleNamespace:
        if gpu.used is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu

    functions = {
        "Init": lambda: None,
        "DeviceGetCount": lambda: len(GPUS),
        "DeviceGetHandleByIndex": lambda index: GPUS[index],
        "DeviceGetHandleByUUID": lambda uuid: next(gpu for gpu in GPUS if gpu.uuid == uuid),
        "DeviceGetUUID": lambda gpu: gpu.uuid,
        "DeviceGetName": lambda gpu: gpu.name,
        "DeviceGetMemoryInfo": memory,
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", function)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


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
    driver: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, kind: str, name: str | None
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    worker_device = device.find_device()
    assert worker_device.kind == kind
    assert worker_device.name == name or (name is None and "threads" in worker_device.name)


def test_memory_is_read(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = device.MemoryWatch(device.find_device()).read()
    assert (memory["device_total"], memory["device_used"]) == (81559 * 2**20, 2**30)
    assert 0 < (memory["host_used"] or 0) < (memory["host_total"] or 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert device.MemoryWatch(device.find_device()).read()["device_total"] is None


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert device.find_device().kind == "cpu"


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        ("0::/\n", "", ("memory.max", "memory.current")),
        ("0::/slurm/job\n", "slurm", ("memory.max", "memory.current")),  # the group above has the limit
        ("4:cpu,memory:/job\n0::/\n", "memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("4:memory:/docker/1f3d\n", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_the_memory_limit_of_a_container_is_respected(
    membership: str, folder: str, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    monkeypatch.setattr(host_memory, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "groups")
    limit, used = (tmp_path / "groups" / folder / name for name in files)
    limit.parent.mkdir(parents=True)
    limit.write_text("1048576\n")
    used.write_text("4096\n")
    assert host_memory.read_memory() == (1048576, 4096)
    for unlimited in ("max\n", "9223372036854771712\n"):
        limit.write_text(unlimited)
        memory = host_memory.read_memory()
        assert memory
        assert memory.total == psutil.virtual_memory().total
