"""Manifests and reproductions."""

from typing import Any

from fastapi import APIRouter, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import IdempotencyKey, accepted
from app.experiments.reproductions import service
from app.experiments.reproductions.schemas import ReproductionOut, Reproductions
from app.experiments.schemas import ExperimentOut

router = APIRouter(prefix="/v1", tags=["results"])

EXAMPLE = {
    "format": 1,
    "spec": {"dataset": {"name": "digits"}, "attack": {"name": "badnets"}},
    "spec_hash": "5f0c...",
    "seeds": [0],
    "command": "python -m worker.lab spec.json --out DIR",
    "data": {"name": "digits", "sha256": "9d1e..."},
    "victim_sha256": None,
    "code": {"lab_version": 1, "sha256": "77ab..."},
    "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "device": {"type": "cpu", "name": "AMD EPYC 7B13", "threads": 2, "bfloat16": False, "compile": False},
    "stages": [{"kind": "victim", "arm": "undefended", "seed": 0, "key": "1c9b...", "from_store": False}],
    "began_at": "2026-01-31T12:00:00+00:00",
    "ended_at": "2026-01-31T12:00:40+00:00",
    "results": {"arms": []},
}


@router.get(
    "/experiments/{experiment_id}/manifest",
    summary="What made a result",
    response_model=dict[str, Any],
    responses={200: {"content": {"application/json": {"example": EXAMPLE}}}, **problems(404, 422, 500)},
)
def manifest(experiment_id: str, context: Ctx) -> Response:
    """The spec, digests of data and code, versions, device, stages, times and numbers: enough to run it elsewhere.

    The same bytes as the artifact `manifest.json`, which a run stores when it completes.
    """
    return Response(service.manifest(context, experiment_id), media_type="application/json")


@router.post(
    "/experiments/{experiment_id}:reproduce",
    status_code=202,
    summary="Run an experiment again without the cache, and compare",
    response_model=ExperimentOut,
    responses=problems(404, 409, 422),
)
def reproduce(
    experiment_id: str,
    context: Ctx,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue the same spec as a new experiment that uses no cached stages of others.

    Its `GET .../reproduction` shows for each metric whether the numbers agree. If it is interrupted, it resumes from
    its own checkpoints.
    """
    answer, replayed = service.reproduce(context, experiment_id, idempotency_key)
    return accepted(answer, f"/v1/experiments/{answer['id']}/reproduction", replayed=replayed)


@router.get(
    "/experiments/{experiment_id}/reproduction",
    summary="Whether the numbers were reproduced",
    responses=problems(404, 422, 500),
)
def reproduction(experiment_id: str, context: Ctx) -> ReproductionOut:
    """How the numbers of a reproduction compare with the original's, with the tolerance and the reason for it."""
    return service.reproduction(context, experiment_id)


@router.get(
    "/experiments/{experiment_id}/reproductions",
    summary="The reproductions of an experiment",
    responses=problems(404, 422),
)
def reproductions(experiment_id: str, context: Ctx) -> Reproductions:
    """The experiments that reproduce this one, newest first."""
    return service.reproductions(context, experiment_id)
