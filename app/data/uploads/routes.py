"""Upload, list and delete models and datasets."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from app.core.context import Context, Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, Limit, accepted, as_json, paged
from app.core.turns import Kind
from app.data.resolve import dataset_facts
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
from app.tables.uploads import DATASET, MODEL, Upload

router = APIRouter(prefix="/v1", tags=["uploads"])
STREAMED = frozenset({"/v1/models", "/v1/datasets"})
"""Paths whose POST reads its body as a stream."""
ARRIVING = Kind("uploads", per_owner=4)
"""Each of them has up to 15 MiB in memory on its way to the object store."""
REFUSALS = problems(400, 408, 413, 415, 422, 429, 503)
States = Annotated[Status | None, Query(description="Only those with this status", examples=["ready"])]
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
    summary="Upload a model",
    responses=REFUSALS,
    openapi_extra=example(MODEL_EXAMPLE, ModelMetadata),
)
async def send_model(request: Request, context: Ctx) -> Response:
    """A safetensors file that experiments can start from (`"victim": {"model_id": ID}`).

    The form has the parts `metadata` (JSON) and `file`. A `model.safetensors` that this service exported describes
    itself and needs no metadata. Files from elsewhere may have the names of torchvision or of other projects, and
    `mapped` says what was renamed, converted or added. The file is streamed to the object store; then a worker checks
    it, header first, and the model becomes `ready`, or `refused` with the reason. Nothing is ever unpickled.
    Uploading the same file with the same metadata again returns the same model.
    """
    return await _send(request, context, MODEL, _present_model)


@router.post(
    "/datasets",
    status_code=202,
    response_model=DatasetOut,
    summary="Upload a dataset",
    responses=REFUSALS,
    openapi_extra=example(DATASET_EXAMPLE, DatasetMetadata),
)
async def send_dataset(request: Request, context: Ctx) -> Response:
    """An npz, a zip of pictures by class, or a parquet file, as for `bdlab data import`.

    The form has the parts `metadata` (JSON) and `file`. The file is streamed to the object store; then a worker checks
    and converts it, and the dataset becomes `ready`, or `refused` with the reason. Uploading the same file with the
    same metadata again returns the same dataset.
    """
    return await _send(request, context, DATASET, _present_dataset)


@router.get("/models", response_model=Models, summary="List models", responses=problems(400, 422))
def list_models(
    request: Request, context: Ctx, status: States = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """One page of models, newest first. Follow `next`, or the `Link` header, for more."""
    rows, following = service.listing(context, MODEL, status, cursor, limit)
    models = [_present_model(row) for row in rows]
    return paged(request, following, lambda link: Models(models=models, next=link))


@router.get("/datasets", response_model=Datasets, summary="List datasets", responses=problems(400, 422))
def list_datasets(
    request: Request, context: Ctx, status: States = None, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """One page of uploaded datasets, newest first. Follow `next`, or the `Link` header, for more."""
    rows, following = service.listing(context, DATASET, status, cursor, limit)
    datasets = [_present_dataset(row) for row in rows]
    return paged(request, following, lambda link: Datasets(datasets=datasets, next=link))


@router.get("/models/{model_id}", response_model=ModelOut, summary="One model", responses=problems(404, 422))
def model(model_id: str, context: Ctx) -> Response:
    """A model and the result of its check."""
    return as_json(_present_model(service.get(context, MODEL, model_id)))


@router.get(
    "/datasets/{dataset_id}", response_model=DatasetOut, summary="One dataset", responses=problems(404, 422)
)
def dataset(dataset_id: str, context: Ctx) -> Response:
    """A dataset and the result of its check."""
    return as_json(_present_dataset(service.get(context, DATASET, dataset_id)))


@router.delete(
    "/models/{model_id}", status_code=204, summary="Delete a model", responses=problems(404, 409, 422)
)
def remove_model(model_id: str, context: Ctx) -> None:
    """Delete a model and its file. Refused while the spec of an experiment names it."""
    service.remove(context, MODEL, model_id)


@router.delete(
    "/datasets/{dataset_id}", status_code=204, summary="Delete a dataset", responses=problems(404, 409, 422)
)
def remove_dataset(dataset_id: str, context: Ctx) -> None:
    """Delete a dataset and its file. Refused while the spec of an experiment names it."""
    service.remove(context, DATASET, dataset_id)


def _present_model(row: Upload) -> ModelOut:
    facts = row.facts or {}
    described = {name: facts.get(name) or row.request.get(name) for name in ("model", "shape")}
    return ModelOut.model_validate(
        {
            **_common(row),
            **described,
            "parameters": facts.get("parameters"),
            "mapped": facts.get("mapped") or None,
            "labels": facts.get("labels", {}),
        }
    )


def _present_dataset(row: Upload) -> DatasetOut:
    facts = dataset_facts(row.facts) if row.facts else None
    notes = (row.facts or {}).get("notes", [])
    spec = {"name": "uploaded", "dataset_id": row.id}
    return DatasetOut.model_validate(
        {**_common(row), "dataset": spec, "facts": facts, "version": row.version or None, "notes": notes}
    )


def _common(row: Upload) -> dict[str, Any]:
    names = ("id", "name", "status", "reason", "size", "sha256", "created_at", "checked_at")
    return {name: getattr(row, name) for name in names}


async def _send(
    request: Request, context: Context, kind: str, present: Callable[[Upload], BaseModel]
) -> Response:
    length = request.headers.get("content-length", "")
    async with context.turns.take(ARRIVING, context.principal.owner_id):
        upload, repeated = await service.receive(
            context,
            kind,
            request.headers.get("content-type", ""),
            int(length) if length.isdigit() and len(length) < 20 else None,
            request.stream(),
        )
    return accepted(present(upload).model_dump(mode="json"), f"/v1/{kind}s/{upload.id}", replayed=repeated)
