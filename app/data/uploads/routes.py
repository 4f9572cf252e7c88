"""Send, find and delete models and data sets."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from app.core.context import Context, Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, Limit, accepted, as_json, paged
from app.data.uploads import service
from app.data.uploads.schemas import (
    DatasetMetadata,
    DatasetOut,
    Datasets,
    ModelMetadata,
    ModelOut,
    Models,
    Status,
    example,
)
from app.specs.facts import DatasetFacts
from app.tables.uploads import DATASET, MODEL, Upload

router = APIRouter(prefix="/v1", tags=["uploads"], dependencies=[Depends(reject_unknown_parameters)])
STREAMED = frozenset({"/v1/models", "/v1/datasets"})
"""Paths whose POST reads its body itself, as it comes."""
REFUSALS = problems(400, 408, 413, 415, 422, 503)
States = Annotated[Status | None, Query(description="Only those in this state", examples=["ready"])]
MODEL_EXAMPLE = {
    "name": "my model",
    "model": {"name": "small_cnn", "width": 16},
    "dataset": {"name": "digits"},
}
DATASET_EXAMPLE = {"name": "my pictures", "format": "zip", "size": 32, "test_fraction": 0.2}


@router.post(
    "/models",
    status_code=202,
    response_model=ModelOut,
    summary="Send a model",
    responses=REFUSALS,
    openapi_extra=example(MODEL_EXAMPLE, ModelMetadata),
)
async def send_model(request: Request, context: Ctx) -> Response:
    """Take a safetensors file, for experiments to start from (`"victim": {"model_id": ID}`).

    A form: `metadata`, JSON, and `file`. A `model.safetensors` that this service exported says itself what it is and
    needs no metadata. The file streams to the object store; then a worker checks it, header first, and the model is
    `ready`, or `refused` with the reason. Nothing is ever unpickled. Sending the same again gives the same model.
    """
    return await _send(request, context, MODEL, model_out)


@router.post(
    "/datasets",
    status_code=202,
    response_model=DatasetOut,
    summary="Send a data set",
    responses=REFUSALS,
    openapi_extra=example(DATASET_EXAMPLE, DatasetMetadata),
)
async def send_dataset(request: Request, context: Ctx) -> Response:
    """Take an npz, a zip of pictures by class, or a parquet file, as `bdlab data import` does.

    A form: `metadata`, JSON, and `file`. The file streams to the object store; then a worker checks and converts it,
    and the data set is `ready`, or `refused` with the reason. Sending the same again gives the same data set.
    """
    return await _send(request, context, DATASET, dataset_out)


@router.get("/models", response_model=Models, summary="List models", responses=problems(400, 422))
def models(
    request: Request, context: Ctx, status: States = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """One page of models, the newest first. Follow `next`, or the `Link` header, for more."""
    rows, following = service.listing(context, MODEL, status, cursor, limit)
    found = [model_out(row) for row in rows]
    return paged(request, following, lambda link: Models(models=found, next=link))


@router.get("/datasets", response_model=Datasets, summary="List data sets", responses=problems(400, 422))
def datasets(
    request: Request, context: Ctx, status: States = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """One page of uploaded data sets, the newest first. Follow `next`, or the `Link` header, for more."""
    rows, following = service.listing(context, DATASET, status, cursor, limit)
    found = [dataset_out(row) for row in rows]
    return paged(request, following, lambda link: Datasets(datasets=found, next=link))


@router.get("/models/{model_id}", response_model=ModelOut, summary="One model", responses=problems(404, 422))
def model(model_id: str, context: Ctx) -> Response:
    """What it is, and what its check found."""
    return as_json(model_out(service.get(context, MODEL, model_id)))


@router.get(
    "/datasets/{dataset_id}", response_model=DatasetOut, summary="One data set", responses=problems(404, 422)
)
def dataset(dataset_id: str, context: Ctx) -> Response:
    """What it is, and what its check found."""
    return as_json(dataset_out(service.get(context, DATASET, dataset_id)))


@router.delete(
    "/models/{model_id}", status_code=204, summary="Delete a model", responses=problems(404, 409, 422)
)
def remove_model(model_id: str, context: Ctx) -> None:
    """Delete a model and its file. Refused while the spec of an experiment names it."""
    service.remove(context, MODEL, model_id)


@router.delete(
    "/datasets/{dataset_id}", status_code=204, summary="Delete a data set", responses=problems(404, 409, 422)
)
def remove_dataset(dataset_id: str, context: Ctx) -> None:
    """Delete a data set and its file. Refused while the spec of an experiment names it."""
    service.remove(context, DATASET, dataset_id)


def model_out(row: Upload) -> ModelOut:
    """A model as the API shows it."""
    facts = row.facts or {}
    known = {name: facts.get(name) or row.request.get(name) for name in ("model", "shape")}
    return ModelOut.model_validate(
        {**_common(row), **known, "parameters": facts.get("parameters"), "labels": facts.get("labels", {})}
    )


def dataset_out(row: Upload) -> DatasetOut:
    """A data set as the API shows it."""
    facts = DatasetFacts.model_validate(row.facts) if row.facts else None
    spec = {"name": "uploaded", "dataset_id": row.id}
    return DatasetOut.model_validate(
        {**_common(row), "dataset": spec, "facts": facts, "version": row.version or None}
    )


def _common(row: Upload) -> dict[str, Any]:
    names = ("id", "name", "status", "reason", "size", "sha256", "created_at", "checked_at")
    return {name: getattr(row, name) for name in names}


async def _send(
    request: Request, context: Context, kind: str, show: Callable[[Upload], BaseModel]
) -> Response:
    length = request.headers.get("content-length", "")
    upload, repeated = await service.receive(
        context,
        kind,
        request.headers.get("content-type", ""),
        int(length) if length.isdigit() and len(length) < 20 else None,
        request.stream(),
    )
    return accepted(show(upload).model_dump(mode="json"), f"/v1/{kind}s/{upload.id}", replayed=repeated)
