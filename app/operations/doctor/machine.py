"""This machine: torch and its devices, disks, and data sets."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.data.local_datasets import NO_FILE_NEEDED, command, imported, present
from app.operations.doctor.findings import Finding, Installation, State, error, ok, warning
from app.specs.dataset import FETCHED
from app.specs.facts import BUILT_IN

TORCH_SECONDS = 120
LOW_BYTES, VERY_LOW_BYTES = 10 * 2**30, 2**30
TORCH_PROBE = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
if names:
    (torch.ones(8, device="cuda") * 2).sum().item()
print(json.dumps({"version": torch.__version__, "names": names}))
"""


def check_torch(installation: Installation) -> Iterator[Finding]:
    """Whether workers can train here, and on what. A child process imports torch, which takes seconds."""
    if importlib.util.find_spec("torch") is None:
        yield ok("torch", "not installed: this machine can run the API and the relay, but not workers")
        return
    probe = subprocess.run(
        [sys.executable, "-c", TORCH_PROBE],
        capture_output=True,
        text=True,
        timeout=TORCH_SECONDS,
        check=False,
    )
    if probe.returncode != 0:
        last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        yield error("torch", f"it does not work: {last[:200]}", "reinstall requirements/torch.txt")
        return
    found = json.loads(probe.stdout.splitlines()[-1])
    if found["names"]:
        yield ok("torch", f"{found['version']} on {', '.join(found['names'])}")
    elif any(Path("/dev").glob("nvidia[0-9]*")):
        detail = f"torch {found['version']} does not find this machine's GPU"
        yield warning("torch", detail, "install a build of torch for the GPU's driver")
    else:
        yield ok("torch", f"{found['version']} on the CPU, {os.cpu_count()} threads")


def check_disk(installation: Installation) -> Iterator[Finding]:
    """Free space on every disk that the service writes to."""
    settings = installation.settings
    folders = {
        "home": settings.home_dir,
        "data sets": settings.datasets,
        "temporary files": Path(tempfile.gettempdir()),
    }
    if settings.objects.startswith("file://"):
        folders["objects"] = Path(settings.objects.removeprefix("file://"))
    disks: dict[int, tuple[Path, list[str]]] = {}
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        disks.setdefault(existing.stat().st_dev, (existing, []))[1].append(name)
    for path, names in disks.values():
        free = shutil.disk_usage(path).free
        detail = f"{free / 2**30:.1f} GiB free for {', '.join(names)} ({path})"
        mend = "free space; bdlab gc shows what can be deleted"
        state: State = "ok" if free > LOW_BYTES else "warning" if free > VERY_LOW_BYTES else "error"
        yield Finding("disk", state, detail, "" if state == "ok" else mend)


def check_datasets(installation: Installation) -> Iterator[Finding]:
    """Which data sets are on this machine, and whether their files are complete."""
    folder = installation.settings.datasets
    local = [name for name in (NO_FILE_NEEDED, *FETCHED) if present(name, folder)]
    keys = imported(folder)
    for key in sorted({path.stem for path in (folder / "imported").glob("*.safetensors")} - set(keys)):
        detail = f"the file of the imported set {key!r} is damaged"
        yield error("data sets", detail, f"run bdlab data import FILE --name {key}")
    detail = f"{', '.join(local)}; imported: {', '.join(keys) or 'none'}"
    if missing := [name for name in BUILT_IN if name not in local]:
        commands = "; ".join(str(command(name)) for name in missing)
        yield warning("data sets", f"{detail}; missing: {', '.join(missing)}", f"if needed, run {commands}")
    else:
        yield ok("data sets", detail)
