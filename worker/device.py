"""What a worker computes on, and how full it is, found without torch: a forking parent must not touch CUDA.

A worker uses the first GPU that it sees, as ``CUDA_VISIBLE_DEVICES`` and the driver's own tool ``nvidia-smi`` tell it.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPU, GPU = "cpu", "gpu"
NAME_CHARACTERS = 200
TOOL_SECONDS = 20
QUERY = "--query-gpu=index,uuid,name,memory.total,memory.used"
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
MEBIBYTE, KIBIBYTE = 2**20, 2**10


@dataclass(frozen=True)
class Device:
    """``kind`` is cpu or gpu; ``id`` the GPU's UUID."""

    kind: str
    name: str
    id: str = ""


@dataclass(frozen=True)
class Gpu:
    """One line of ``nvidia-smi``. Memory in bytes, None where the driver does not tell it."""

    index: str
    uuid: str
    name: str
    total: int | None
    used: int | None


def find() -> Device:
    """The device of this process."""
    gpus = visible(_ask())
    return Device(GPU, gpus[0].name[:NAME_CHARACTERS], gpus[0].uuid) if gpus else Device(CPU, _cpu_name())


def visible(gpus: list[Gpu]) -> list[Gpu]:
    """Those of the machine's GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return gpus
    chosen = []
    for entry in (text.strip() for text in wanted.split(",")):
        fitting = [
            gpu for gpu in gpus if gpu.index == entry or (len(entry) > 4 and gpu.uuid.startswith(entry))
        ]
        if not fitting:  # as CUDA does: the first that is not there ends the list
            break
        chosen += fitting[:1]
    return chosen


class MemoryWatch:
    """How full device and host are. Asks the driver beside the caller's work: an answer is there at the next call."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._asked: subprocess.Popen[str] | None = None
        self._gpu: dict[str, int | None] = {"device_total": None, "device_used": None}

    def read(self) -> dict[str, int | None]:
        """Bytes by ``device_total``, ``device_used``, ``host_total``, ``host_used``; None what is not known."""
        if self._device.kind == GPU:
            self._collect()
        return self._gpu | host_memory()

    def _collect(self) -> None:
        if self._asked is not None and self._asked.poll() is not None:
            output = self._asked.communicate()[0]
            for gpu in _parse(output):
                if gpu.uuid == self._device.id:
                    self._gpu = {"device_total": gpu.total, "device_used": gpu.used}
            self._asked = None
        command = _command()
        if self._asked is None and command is not None:
            self._asked = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )


def host_memory() -> dict[str, int | None]:
    """Total and used bytes of this machine, or of its container where that has less."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * KIBIBYTE for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return {"host_total": None, "host_used": None}
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit < total:
        return {"host_total": limit, "host_used": used}
    return {"host_total": total, "host_used": total - free}


def _command() -> list[str] | None:
    tool = shutil.which("nvidia-smi")
    return [tool, QUERY, "--format=csv,noheader,nounits"] if tool is not None else None


def _ask() -> list[Gpu]:
    command = _command()
    if command is None:
        return []
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return []
    return _parse(asked.stdout) if asked.returncode == 0 else []


def _parse(output: str) -> list[Gpu]:
    found = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == QUERY.count(",") + 1:
            index, uuid, name, total, used = cells
            found.append(Gpu(index, uuid, name, _mebibytes(total), _mebibytes(used)))
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * MEBIBYTE if text.isdigit() else None  # "[N/A]" on a part of a GPU


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _cpu_name() -> str:
    threads = f"{os.cpu_count()} threads"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"CPU, {threads}"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'CPU'}, {threads}"[:NAME_CHARACTERS]
