"""Previews and predictions, which the interactive worker computes while the client waits."""

import base64
import time
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool

from app.core.broker import PREDICT, PREVIEW
from app.core.context import Context
from app.core.errors import (
    ConflictError,
    GoneError,
    InvalidError,
    TooLargeError,
    UnavailableError,
    WorkerFailedError,
)
from app.data.resolve import stored_facts
from app.experiments.interactive.schemas import PredictRequest, PreviewRequest
from app.experiments.planning import plan_experiment, runnable_spec
from app.results.artifacts import repository as artifacts
from app.results.artifacts.service import deletion_message
from app.specs.experiment import ExperimentSpec
from app.specs.pictures import PictureError, PictureSizeError, verify
from app.tables.experiments import require_experiment

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1


async def preview(context: Context, request: PreviewRequest) -> bytes:
    """A PNG of clean, triggered and residual samples. Raises InvalidError, UnavailableError."""
    # Nothing is trained, so the preview of a small dataset must not fail because of the default batch size.
    training = {"batch_size": 2}
    spec = ExperimentSpec.model_validate(
        {"dataset": request.dataset, "attack": request.attack, "training": training}
    )
    await run_in_threadpool(plan_experiment, context, spec)
    answer = await _ask(context, PREVIEW, request.model_dump(mode="json"))
    return base64.b64decode(answer["picture"])


async def predict(
    context: Context, experiment_id: str, request: PredictRequest, image: bytes | None
) -> dict[str, Any]:
    """Every arm's answer for ``image``, or for the test image at ``request.index`` if that is None.

    Raises NotFoundError, ConflictError while there is no model or if a plug-in is missing, GoneError if all models
    were deleted by the retention policy, InvalidError, UnavailableError.
    """
    payload = await run_in_threadpool(_prediction, context, experiment_id, request, image)
    return await _ask(context, PREDICT, payload)


def verify_image(data: bytes, limit: int) -> None:
    """Raises InvalidError if ``data`` is not a picture in an accepted format, TooLargeError if it is too large."""
    if len(data) > limit:
        raise TooLargeError(f"image: {len(data)} bytes; at most {limit} are allowed")
    try:
        verify(data)
    except PictureSizeError as error:
        raise TooLargeError(f"image: the file {error}") from error
    except PictureError as error:
        raise InvalidError.of("image", f"{len(data)} bytes", f"the file {error}") from error


def _prediction(
    context: Context, experiment_id: str, request: PredictRequest, image: bytes | None
) -> dict[str, Any]:
    """The worker's task."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        spec = runnable_spec(experiment)
        seed = spec.seeds[0] if request.seed is None else request.seed
        files = artifacts.list_artifacts(session, experiment_id, kind="checkpoint", seed=seed)
        size = stored_facts(session, experiment.spec, context.settings.datasets).test_size
    if seed not in spec.seeds:
        raise InvalidError.of("seed", seed, f"allowed: {', '.join(map(str, spec.seeds))}")
    if image is None and request.index >= size:
        raise InvalidError.of("index", request.index, f"allowed: 0 to {size - 1}")
    trained = [f for f in files if f.arm and f.name == f"seed-{seed}/{f.arm}/model.safetensors"]
    models = {f.arm: f.object_key for f in trained if f.expired_at is None}
    if trained and not models:
        raise GoneError(deletion_message(trained[0]))
    if not models:
        raise ConflictError(
            f"the experiment has no trained model of seed {seed} yet; it is {experiment.status}"
        )
    return {
        "spec": experiment.spec,
        "checkpoints": {arm: models[arm] for arm in spec.arms if arm in models},
        "index": request.index if image is None else None,
        "image": base64.b64encode(image).decode() if image is not None else None,
        "triggered": request.triggered,
        "seed": seed,
    }


async def _ask(context: Context, task: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Send a task and poll for its answer; no thread is occupied between two polls."""
    timeout = context.settings.interactive_timeout
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    try:
        task_id = await run_in_threadpool(context.broker.ask, task, payload, timeout)
        while (answer := await run_in_threadpool(context.broker.answer, task_id)) is None:
            if time.monotonic() >= deadline:
                raise UnavailableError(f"the interactive worker did not answer within {timeout:g} s")
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    except RuntimeError as error:
        raise WorkerFailedError(str(error)) from error
    if "error" in answer:
        raise InvalidError(str(answer["error"]))
    return answer
