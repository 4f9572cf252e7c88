"""The four Celery tasks. Each imports the lab when it runs, because the parent, which forks, must not import torch."""

import base64
import os
from collections.abc import Callable
from typing import Any

from celery import Task
from pydantic import TypeAdapter

from app.core.broker import CHECK_UPLOAD, PREDICT, PREVIEW, RUN_EXPERIMENT
from app.core.objects import DamagedObjectError, Objects
from app.specs.dataset import DatasetSpec
from app.specs.experiment import ExperimentSpec
from worker.attempt import run_attempt
from worker.celery import app, served_queues, settings, telemetry, worker_name
from worker.lab.contracts import DatasetDamagedError, LabError
from worker.uploads import fetch_dataset

_DATASET: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)


@app.task(name=RUN_EXPERIMENT)
def run_experiment(experiment_id: str) -> None:
    """Run the next experiment in the queue; the id is only a hint."""
    queues = served_queues(app)
    run_attempt(experiment_id, worker_name(os.getppid(), queues), settings, _run, queues, telemetry.pusher)


def _run(*args: Any, **options: Any) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    from worker.lab.experiment import run_experiment  # noqa: PLC0415

    if settings.worker_threads:
        torch.set_num_threads(settings.worker_threads)
    return run_experiment(*args, **options)


@app.task(name=CHECK_UPLOAD, time_limit=int(settings.check_seconds))
def check_upload(upload_id: str) -> None:
    """Check an uploaded model or dataset, if one is pending; the id is only a hint."""
    from worker.checking import check  # noqa: PLC0415

    check(upload_id, settings)


@app.task(name=PREVIEW, ignore_result=False, bind=True)
def preview(self: Task, payload: dict[str, Any]) -> dict[str, Any]:
    """Clean and triggered samples and their difference as ``{"picture": <base64 PNG>}``, or as `predict` fails."""
    with telemetry.request("preview", self.request.get("origin")):
        return _answer(lambda: _preview(payload))


@app.task(name=PREDICT, ignore_result=False, bind=True)
def predict(self: Task, payload: dict[str, Any]) -> dict[str, Any]:
    """Class and probabilities of every arm's model, or ``{"error": ...}``, or ``{"damaged": ...}``."""
    with telemetry.request("predict", self.request.get("origin")):
        return _answer(lambda: _predict(payload))


def _answer(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or what is wrong with the request (``error``) or with what is stored (``damaged``)."""
    try:
        return compute()
    except (DamagedObjectError, DatasetDamagedError) as error:
        return {"damaged": str(error)}
    except LabError as error:
        return {"error": str(error)}


def _preview(payload: dict[str, Any]) -> dict[str, Any]:
    from worker.lab import interactive  # noqa: PLC0415

    dataset = _DATASET.validate_python(payload["dataset"])
    fetch_dataset(dataset, Objects(settings.objects), settings.datasets)
    picture = interactive.preview(payload, settings.datasets)
    return {"picture": base64.b64encode(picture).decode()}


def _predict(payload: dict[str, Any]) -> dict[str, Any]:
    from worker.lab import interactive  # noqa: PLC0415

    objects = Objects(settings.objects)
    checkpoints = {arm: objects.get(key) for arm, key in payload["checkpoints"].items()}
    if missing := sorted(arm for arm, data in checkpoints.items() if data is None):
        return {"error": f"the stored model is missing: {', '.join(missing)}"}
    trigger_key = payload.get("trigger")
    trigger = objects.get(trigger_key) if trigger_key else None
    if trigger_key and trigger is None:
        return {"error": "the stored trigger is missing"}
    # A task that was sent before there were input detections names none.
    detectors = {arm: objects.get(key) for arm, key in payload.get("detectors", {}).items()}
    if missing := sorted(arm for arm, data in detectors.items() if data is None):
        return {"error": f"the stored detector is missing: {', '.join(missing)}"}
    image, spec = payload["image"], ExperimentSpec.model_validate(payload["spec"])
    fetch_dataset(spec.dataset, objects, settings.datasets)
    return interactive.predict(
        spec,
        {arm: data for arm, data in checkpoints.items() if data is not None},
        data_dir=settings.datasets,
        index=payload["index"],
        image=base64.b64decode(image) if image is not None else None,
        triggered=payload["triggered"],
        seed=payload["seed"],
        trigger_state=trigger,
        detectors={arm: data for arm, data in detectors.items() if data is not None},
    )
