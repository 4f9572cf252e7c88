"""Previews and predictions, which the interactive worker computes while the client waits."""

import base64
import time
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool

from app.core.broker import PREDICT, PREVIEW, Broker
from app.core.context import Context
from app.core.errors import (
    ConflictError,
    DamagedError,
    GoneError,
    InvalidError,
    TooLargeError,
    UnavailableError,
    WorkerFailedError,
)
from app.core.turns import Kind
from app.data.resolve import stored_facts
from app.experiments.interactive.schemas import PredictRequest, PreviewRequest
from app.experiments.planning import plan_experiment, runnable_spec
from app.results.artifacts import repository as artifacts
from app.results.artifacts.service import deletion_message
from app.specs.artifacts import DETECTOR
from app.specs.experiment import ExperimentSpec
from app.specs.pictures import PictureError, PictureSizeError, verify
from app.tables.experiments import require_experiment

MOST_PIXELS = 2**22
"""Four times the largest input of a network. What is decoded takes time of the worker that all owners share."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
QUESTIONS = Kind("previews and predictions", per_owner=8, width=3)
"""Two of an owner run at once: a worker computes one at a time and need not wait for the next. The others wait here,
where owners take turns, and not in the broker's queue."""


async def preview(context: Context, request: PreviewRequest) -> bytes:
    """A PNG of clean, triggered and residual samples. Raises DamagedError, InvalidError, UnavailableError."""
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
    were deleted by the retention policy, DamagedError, InvalidError, UnavailableError.
    """
    payload = await run_in_threadpool(_prediction, context, experiment_id, request, image)
    return await _ask(context, PREDICT, payload)


def verify_image(data: bytes, limit: int) -> None:
    """Raises InvalidError if ``data`` is not a picture in an accepted format, TooLargeError if it is too large."""
    if len(data) > limit:
        raise TooLargeError(f"image: {len(data)} bytes; at most {limit} are allowed")
    try:
        width, height = verify(data).size
    except PictureSizeError as error:
        raise TooLargeError(f"image: the file {error}") from error
    except PictureError as error:
        raise InvalidError.of("image", f"{len(data)} bytes", f"the file {error}") from error
    if width * height > MOST_PIXELS:
        raise TooLargeError(f"image: {width * height} pixels; at most {MOST_PIXELS} are allowed")


def _prediction(
    context: Context, experiment_id: str, request: PredictRequest, image: bytes | None
) -> dict[str, Any]:
    """The worker's task."""
    with context.database.reading() as session:
        experiment = require_experiment(session, experiment_id)
        spec = runnable_spec(experiment)
        seed = spec.seeds[0] if request.seed is None else request.seed
        files = artifacts.list_artifacts(session, experiment_id, kind="checkpoint", seed=seed)
        data = artifacts.list_artifacts(session, experiment_id, kind="data", seed=seed)
        size = stored_facts(session, experiment.spec, context.settings.datasets).test_size
    if seed not in spec.seeds:
        raise InvalidError.of("seed", seed, f"allowed: {', '.join(map(str, spec.seeds))}")
    if image is None and request.index >= size:
        raise InvalidError.of("index", request.index, f"allowed: 0 to {size - 1}")
    trained = [f for f in files if f.arm and f.name == f"seed-{seed}/{f.arm}/model.safetensors"]
    models = {f.arm: f.object_key for f in trained if f.expired_at is None}
    detectors = {
        f.arm: f.object_key
        for f in data
        if f.name == f"seed-{seed}/{f.arm}/{DETECTOR}" and f.arm in models and f.expired_at is None
    }
    if trained and not models:
        raise GoneError(deletion_message(trained[0]))
    if not models:
        raise ConflictError(
            f"the experiment has no trained model of seed {seed} yet; it is {experiment.status}"
        )
    trigger = next((f for f in data if f.name == f"seed-{seed}/trigger.safetensors"), None)
    if request.triggered and trigger is not None and trigger.expired_at is not None:
        raise GoneError(deletion_message(trigger))
    return {
        "spec": experiment.spec,
        "trigger": trigger.object_key if request.triggered and trigger is not None else None,
        "checkpoints": {arm: models[arm] for arm in spec.arms if arm in models},
        "detectors": detectors,
        "index": request.index if image is None else None,
        "image": base64.b64encode(image).decode() if image is not None else None,
        "triggered": request.triggered,
        "seed": seed,
    }


async def _ask(context: Context, task: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer to a task, which is sent when it is the owner's turn.

    Raises TooManyError, InvalidError, WorkerFailedError, UnavailableError.
    """
    timeout = context.settings.interactive_timeout
    deadline = time.monotonic() + timeout
    async with context.turns.take(QUESTIONS, context.principal.owner_id, patience=timeout):
        try:
            answer = await _poll(context.broker, task, payload, deadline)
        except RuntimeError as error:
            raise WorkerFailedError(str(error)) from error
    if answer is None:
        raise UnavailableError(f"the interactive worker did not answer within {timeout:g} s")
    if "damaged" in answer:
        raise DamagedError(str(answer["damaged"]))
    if "error" in answer:
        raise InvalidError(str(answer["error"]))
    return answer


async def _poll(broker: Broker, task: str, payload: dict[str, Any], deadline: float) -> dict[str, Any] | None:
    """Send a task and poll for its answer; no thread is occupied between two polls. None if there is none in time."""
    pause, seconds = FIRST_PAUSE, max(0.0, deadline - time.monotonic())
    task_id = await run_in_threadpool(broker.ask, task, payload, seconds)
    while (answer := await run_in_threadpool(broker.answer, task_id)) is None:
        if time.monotonic() >= deadline:
            return None
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return answer
