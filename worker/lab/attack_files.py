"""The files of a poisoned set: stealth measures, trigger, figures and, if the spec asks for it, the set itself."""

import json
from typing import Any

import torch

from app.specs.attack import PoisoningAttack
from app.specs.base import canonical_json
from app.specs.experiment import ATTACK, ExperimentSpec
from worker.lab.attacks import Attack, PoisonedSet, Prepared
from worker.lab.contracts import Recorder, Scope
from worker.lab.data.datasets import Dataset
from worker.lab.data.streamed import select_rows
from worker.lab.evaluation import TestSet
from worker.lab.exports import record_exports
from worker.lab.stealth import measure_stealth
from worker.lab.tensor_files import dump_tensors

SHEET_IMAGES_PER_CLASS, SHEET_IMAGES, SHEET_SIDE = 10, 500, 64
"""Images of each class and of all on the sheet of a dataset, and pixels from which every other one is left out."""


def record_attack_files(
    spec: ExperimentSpec,
    seed: int,
    data: Dataset,
    attack: Attack[Any] | None,
    prepared: Prepared,
    poisoned: PoisonedSet,
    test: TestSet,
    recorder: Recorder,
) -> dict[str, float | None]:
    """Record every file; returns the stealth measures of the triggered test images.

    `stealth.json` holds those, and the same of the poisoned training images, which differ where an attack
    does more to these than apply its trigger.
    """
    if attack is None or not isinstance(spec.attack, PoisoningAttack):
        return {}
    assert test.triggered is not None
    assert test.origin is not None
    assert poisoned.is_poisoned is not None
    files = _SeedFiles(recorder, seed)
    of_test = measure_stealth(select_rows(test.clean.images, test.origin), test.triggered.images)
    index = poisoned.is_poisoned.nonzero().flatten()
    of_training = measure_stealth(
        select_rows(data.train.images, poisoned.origin[index]), select_rows(poisoned.images, index)
    )
    document = {"triggered_test_images": of_test, "poisoned_training_images": of_training}
    files.add("stealth.json", "data", "application/json", json.dumps(document, indent=1).encode())
    if spec.attack.stages() and poisoned.state:
        header = {"attack": canonical_json(spec.attack), "seed": str(seed)}
        file = dump_tensors(poisoned.state, header)
        files.add("trigger.safetensors", "data", "application/octet-stream", file)
    if spec.attack.export:
        record_exports(files.add, recorder.log, spec, data, poisoned, test)
    _record_figures(files, spec, data, prepared)
    return of_test


class _SeedFiles:
    def __init__(self, recorder: Recorder, seed: int) -> None:
        self.recorder = recorder
        self.seed = seed

    def add(
        self, name: str, kind: Any, media_type: str, data: bytes, labels: dict[str, Any] | None = None
    ) -> None:
        scope = Scope(None, self.seed)
        self.recorder.artifact(scope, f"seed-{self.seed}/{name}", kind, media_type, data, labels or {})


def _record_figures(files: _SeedFiles, spec: ExperimentSpec, data: Dataset, prepared: Prepared) -> None:
    try:
        from worker.lab import figures  # noqa: PLC0415  # matplotlib is slow to import, and may be missing
    except ImportError:
        files.recorder.log("the attack's figures are left out: matplotlib is not installed")
        return
    names = data.facts.class_names
    labels = data.train.labels.cpu()
    each = max(1, min(SHEET_IMAGES_PER_CLASS, SHEET_IMAGES // len(names)))
    rows = torch.cat([(labels == c).nonzero().flatten()[:each] for c in range(len(names))])[:SHEET_IMAGES]
    step = max(1, min(data.train.images.shape[2:]) // SHEET_SIDE)
    shown = select_rows(data.train.images, rows.to(data.train.images.device))
    sheet = figures.dataset_sheet(
        torch.cat([part[..., ::step, ::step] for part in shown.split(SHEET_IMAGES_PER_CLASS)]).cpu().numpy(),
        [names[label] for label in labels[rows].tolist()],
        f"{spec.dataset.name}: {len(labels)} training images",
    )
    files.add("dataset.png", "figure", "image/png", sheet)
    for name, picture in prepared.pictures.items():
        png = figures.image_rows(
            [(row, images.cpu().numpy()) for row, images in picture.rows], picture.above, picture.title
        )
        files.add(f"{ATTACK}/{name}.png", "figure", "image/png", png)
