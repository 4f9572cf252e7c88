"""The manifest of a run: what is needed to reproduce it, and to explain differences.

It holds the spec with every default, the content address of every stage, digests of data and code, the versions of
all packages that affect numbers, the device, the times, and the results.
"""

import hashlib
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import app.specs
from app.specs.experiment import ExperimentSpec
from app.specs.stages import LAB_VERSION
from worker.lab.compute import Compute
from worker.lab.data.datasets import Dataset
from worker.lab.data.streamed import READ_IMAGES
from worker.lab.stages import Outcome, StageRun

FORMAT = 1
MANIFEST_NAME = "manifest.json"
PACKAGES = (
    "backdoor-lab",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "safetensors",
    "pydantic",
)


class StageRecord(NamedTuple):
    """A finished stage. ``from_store``: it was loaded, not computed."""

    kind: str
    arm: str | None
    seed: int
    key: str
    from_store: bool
    seconds: float

    @classmethod
    def of(cls, run: StageRun, outcome: Outcome) -> "StageRecord":
        planned = run.planned
        cached = bool(outcome.facts.get("cached", False))
        return cls(planned.kind, planned.arm, planned.seed, planned.key, cached, round(outcome.seconds, 3))


def build_manifest(
    spec: ExperimentSpec,
    data: Dataset,
    compute: Compute,
    stages: list[StageRecord],
    arms: list[dict[str, Any]],
    began: datetime,
    victim: str | None,
) -> dict[str, Any]:
    """The manifest as JSON.

    ``data``: the whole dataset; ``began``: start of the run; ``victim``: SHA-256 of the user's model, if any.
    """
    return {
        "format": FORMAT,
        "spec": spec.model_dump(mode="json"),
        "spec_hash": spec.spec_hash,
        "seeds": list(spec.seeds),
        "command": "python -m worker.lab spec.json --out DIR",
        "data": {"name": spec.dataset.name, "sha256": data_digest(data)},
        "victim_sha256": victim,
        "code": {"lab_version": LAB_VERSION, "sha256": code_digest(), **_plugins(spec)},
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": describe_device(compute),
        "stages": [stage._asdict() for stage in stages],
        "began_at": began.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
        "results": {"arms": arms},
    }


def describe_device(compute: Compute) -> dict[str, Any]:
    """Name, versions and arithmetic of the device."""
    common = {
        "type": compute.device.type,
        "bfloat16": compute.bfloat16,
        "compile": compute.compile,
        "threads": torch.get_num_threads(),
    }
    if compute.device.type != "cuda":
        return {**common, "name": _processor()}
    cudnn: int = torch.backends.cudnn.version() or 0
    return {
        **common,
        "name": torch.cuda.get_device_name(compute.device),
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
    }


def data_digest(data: Dataset) -> str:
    """SHA-256 over the shapes, types and bytes of the images and labels, training before test, and of what a dataset
    that came poisoned says about itself."""
    digest = hashlib.sha256()
    truth = data.truth
    splits = [data.train, data.test] + ([] if truth.triggered is None else [truth.triggered])
    tensors = [tensor for split in splits for tensor in (split.images, split.labels)]
    marks = (truth.is_poisoned, truth.is_cross, truth.clean_labels, truth.targets)
    for tensor in [*tensors, *(mark for mark in marks if mark is not None)]:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in tensor.split(READ_IMAGES):
            digest.update(_bytes(part))
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the sources of the lab and of the experiment language, by path."""
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(app.specs.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _plugins(spec: ExperimentSpec) -> dict[str, Any]:
    """SHA-256 of the file of every plug-in that the spec names."""
    digests = {part.name: part.code for part in (spec.model, spec.attack, *spec.defenses) if part.code}
    return {"plugins": digests} if digests else {}


def package_versions() -> dict[str, str]:
    """Versions of the packages that affect numbers, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.machine()}, {os.cpu_count()} threads, {sys.platform}"


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.contiguous().numpy()
    return memoryview(array).cast("B")
