"""A worker's device and its memory use, read without torch, because a process that forks must not initialize CUDA.

A worker uses the first GPU that is visible through ``CUDA_VISIBLE_DEVICES``; NVML, the driver's management library,
lists the GPUs.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pynvml

from app.specs.placement import CPU, GPU
from worker.lab.host_memory import read_memory

NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Device:
    """``kind`` is cpu or gpu; ``id`` the GPU's UUID."""

    kind: str
    name: str
    id: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; ``index`` is its position on the PCI bus."""

    index: str
    uuid: str
    name: str


def find_device() -> Device:
    """The device of this process."""
    gpus = visible_gpus(_list_gpus())
    return Device(GPU, gpus[0].name[:NAME_CHARACTERS], gpus[0].uuid) if gpus else Device(CPU, _cpu_name())


def visible_gpus(gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` lists, in its order."""
    selection = os.environ.get("CUDA_VISIBLE_DEVICES")
    if selection is None:
        return gpus
    visible: list[Gpu] = []
    for entry in (text.strip() for text in selection.split(",")):
        matches = [
            gpu for gpu in gpus if gpu.index == entry or (len(entry) > 4 and gpu.uuid.startswith(entry))
        ]
        if not matches:  # like CUDA, which ignores everything from the first invalid entry on
            break
        visible += matches[:1]
    return visible


class MemoryWatch:
    """Reads the memory use of device and host."""

    def __init__(self, device: Device) -> None:
        self._handle = None
        if device.kind == GPU:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(device.id)

    def read(self) -> dict[str, int | None]:
        """Bytes by ``device_total``, ``device_used``, ``host_total``, ``host_used``; None if unknown."""
        total = used = None
        if self._handle is not None:
            with suppress(pynvml.NVMLError):  # not supported for a MIG instance
                memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
                total, used = int(memory.total), int(memory.used)
        host = read_memory()
        return {
            "device_total": total,
            "device_used": used,
            "host_total": host and host.total,
            "host_used": host and host.used,
        }


def _list_gpus() -> list[Gpu]:
    """All GPUs of this machine; empty without a driver."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(str(index), pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle))
            for index, handle in enumerate(handles)
        ]
    except pynvml.NVMLError:
        return []


def _cpu_name() -> str:
    threads = f"{os.cpu_count()} threads"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"CPU, {threads}"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {threads}"[:NAME_CHARACTERS]
