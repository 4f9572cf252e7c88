"""This machine: torch and its devices, space on disks."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.operations.doctor.findings import Finding, Patient, error, ok, warning

TORCH_SECONDS = 120
LITTLE, VERY_LITTLE = 10 * 2**30, 2**30
FEW_FILES = 10_000
LOOK = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
if cuda:
    (torch.ones(8, device="cuda") * 2).sum().item()
print(json.dumps({"version": torch.__version__, "built": torch.version.cuda, "names": names}))
"""


def torch(patient: Patient) -> Iterator[Finding]:
    """Whether training can run here, and on what. torch is loaded by a process of its own."""
    if importlib.util.find_spec("torch") is None:
        yield ok("torch", "not installed: this machine can run the API and the relay, but no workers")
        return
    asked = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
    )
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        yield error("torch", f"it does not work: {last[:200]}", "install it anew: requirements/torch.txt")
        return
    found = json.loads(asked.stdout.splitlines()[-1])
    if found["names"]:
        yield ok("torch", f"{found['version']} on {', '.join(found['names'])}")
    elif _has_gpu():
        why = (
            "is built without CUDA"
            if found["built"] is None
            else f"for CUDA {found['built']} does not find it"
        )
        yield warning(
            "torch",
            f"there is a GPU, but torch {found['version']} {why}",
            "install a torch that fits the driver",
        )
    else:
        yield ok("torch", f"{found['version']} on the CPU, {os.cpu_count()} threads")


def disk(patient: Patient) -> Iterator[Finding]:
    """Free space on every disk that the service writes to."""
    settings = patient.settings
    places = {
        "home": settings.home_dir,
        "data sets": settings.datasets,
        "temporary files": Path(tempfile.gettempdir()),
    }
    if settings.objects.startswith("file://"):
        places["objects"] = Path(settings.objects.removeprefix("file://"))
    disks: dict[int, list[str]] = {}
    for name, path in places.items():
        there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        disks.setdefault(there.stat().st_dev, [str(there)]).append(name)
    for path_, *names in disks.values():
        free, files = shutil.disk_usage(path_).free, os.statvfs(path_)
        detail = f"{free / 2**30:.1f} GiB free for {', '.join(names)} ({path_})"
        if free < LITTLE:
            yield (error if free < VERY_LITTLE else warning)(
                "disk", detail, "free space; bdlab gc shows what may go"
            )
        elif files.f_files and files.f_favail < FEW_FILES:
            yield warning("disk", f"room for {files.f_favail} more files on {path_}", "delete files there")
        else:
            yield ok("disk", detail)


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    asked = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    return asked.returncode == 0 and "GPU" in asked.stdout
