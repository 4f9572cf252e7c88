"""GET /healthz, /readyz, /metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.core.context import Ctx
from app.core.security import public
from app.operations.health import service, telemetry
from app.operations.health.schemas import Liveness, Readiness

router = APIRouter(tags=["health"])
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Something is not available.", "model": Readiness}
}


@router.get("/healthz", summary="Liveness")
@public
async def healthz() -> Liveness:
    """200 as long as the process is alive; checks nothing else."""
    return Liveness()


@router.get("/readyz", summary="Readiness", responses=NOT_READY)
@public
def readyz(context: Ctx, response: Response) -> Readiness:
    """Checks database, broker, object store, and a live worker on each queue. 503 if one is not available."""
    readiness = service.readiness(context)
    response.status_code = 200 if readiness.ready else 503
    return readiness


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
@public
def metrics(request: Request, context: Ctx) -> Response:
    """Experiments by status, queue ages, live workers, request times by route, and counters of all processes."""
    return Response(telemetry.render(context, request.app.version), media_type=CONTENT_TYPE_LATEST)
