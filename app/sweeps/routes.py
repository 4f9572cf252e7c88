"""Submit, find, cancel, retry and delete sweeps."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, IdempotencyKey, JsonBody, Limit, accepted, as_json, paged
from app.core.security import READ, needs
from app.specs.status import Status
from app.specs.sweep import SweepSpec
from app.sweeps import service
from app.sweeps.schemas import CellPage, RetryStates, SweepOut, SweepPage, SweepValidation

router = APIRouter(prefix="/v1", tags=["sweeps"], dependencies=[Depends(reject_unknown_parameters)])

EXAMPLES: dict[str, Any] = {
    "grid": {
        "summary": "Three rates by two isolation ratios",
        "value": {
            "name": "How much must be isolated",
            "base": {
                "dataset": {"name": "digits"},
                "attack": {"name": "badnets"},
                "defenses": [{"name": "abl"}],
            },
            "grid": {
                "attack.poisoning_rate": [0.02, 0.05, 0.1],
                "defenses.0.isolation_ratio": [0.01, 0.05],
            },
        },
    },
    "overrides": {
        "summary": "Chosen cells",
        "value": {
            "base": {"dataset": {"name": "digits"}},
            "overrides": [
                {"attack": {"name": "blend", "alpha": 0.1}, "training.epochs": 10},
                {"attack": {"name": "sig"}, "seeds": [0, 1]},
            ],
        },
    },
}
Spec = Annotated[SweepSpec, Body(openapi_examples=EXAMPLES)]


@router.post(
    "/sweeps",
    status_code=202,
    response_model=SweepOut,
    summary="Submit a sweep",
    responses=problems(400, 413, 415, 422),
)
def submit(context: Ctx, spec: Spec, _json: JsonBody, idempotency_key: IdempotencyKey = None) -> Response:
    """Queue one experiment for every combination of the `grid`, or for every entry of `overrides`.

    All cells are checked first; if one cannot run nothing is queued, and the problem names the cell, the field and
    its value. Two cells that would give the same numbers are an error too. Works with an `Idempotency-Key`.
    """
    answer, replayed = service.submit(context, spec, idempotency_key)
    return accepted(answer, f"/v1/sweeps/{answer['id']}", replayed=replayed)


@router.post(
    "/sweeps:validate",
    summary="Check a sweep without running it",
    responses=problems(400, 413, 415, 422),
)
@needs(READ)
def validate(context: Ctx, spec: Spec, _json: JsonBody) -> SweepValidation:
    """How many cells there are, and how many of their stages are already cached. Nothing is stored."""
    return service.validate(context, spec)


@router.get("/sweeps", summary="List sweeps", response_model=SweepPage, responses=problems(400, 422))
def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """One page of sweeps, the newest first. Follow `next`, or the `Link` header, for more."""
    sweeps, following = service.listing(context, cursor, limit)
    return paged(request, following, lambda link: SweepPage(sweeps=sweeps, next=link))


@router.get(
    "/sweeps/{sweep_id}", response_model=SweepOut, summary="How a sweep stands", responses=problems(404, 422)
)
def get(sweep_id: str, context: Ctx) -> Response:
    """The request, how many experiments are in each state, and the share of the work that is done."""
    return as_json(service.get(context, sweep_id))


@router.get(
    "/sweeps/{sweep_id}/cells",
    response_model=CellPage,
    summary="A sweep's cells",
    responses=problems(400, 404, 422),
)
def cells(
    sweep_id: str,
    request: Request,
    context: Ctx,
    status: Status | Literal["missing"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """One page of cells in the order of the grid: coordinates, experiment, status, and a summary of the numbers."""
    page, following = service.cells(context, sweep_id, status, cursor, limit)
    return paged(request, following, lambda link: CellPage(cells=page, next=link))


@router.post(
    "/sweeps/{sweep_id}:cancel",
    status_code=202,
    response_model=SweepOut,
    summary="Cancel a sweep",
    responses=problems(404, 422),
)
def cancel(sweep_id: str, context: Ctx) -> Response:
    """Cancel every experiment that has not ended; those that have keep their results. Doing it twice does no harm."""
    return as_json(service.cancel(context, sweep_id), status=202)


@router.post(
    "/sweeps/{sweep_id}:retry",
    status_code=202,
    response_model=SweepOut,
    summary="Retry a sweep's failed cells",
    responses=problems(404, 422),
)
def retry(sweep_id: str, context: Ctx, state: RetryStates = None) -> Response:
    """Queue the experiments again that failed, or in which an arm failed; with `state=canceled` those that were
    canceled. Where there are none, nothing happens."""
    return as_json(service.retry(context, sweep_id, state or ["failed"]), status=202)


@router.delete(
    "/sweeps/{sweep_id}", status_code=204, summary="Delete a sweep", responses=problems(404, 409, 422)
)
def remove(sweep_id: str, context: Ctx) -> None:
    """Delete a sweep and the experiments that it submitted, unless another sweep or study uses them too."""
    service.remove(context, sweep_id)
