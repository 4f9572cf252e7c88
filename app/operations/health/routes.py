"""GET /healthz, /readyz, /metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.core.context import Ctx
from app.core.security import public
from app.operations.health import service
from app.operations.health.schemas import Liveness, Readiness

router = APIRouter(tags=["health"])
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Something is missing.", "model": Readiness}
}


@router.get("/healthz", summary="Is the process alive?")
@public
async def healthz() -> Liveness:
    """Answers as long as the process does; touches nothing else."""
    return Liveness()


@router.get("/readyz", summary="Is everything there?", responses=NOT_READY)
@public
def readyz(context: Ctx, response: Response) -> Readiness:
    """Database, broker, object store, and a live worker on each queue. 503 if any is missing."""
    found = service.readiness(context)
    response.status_code = 200 if found.ready else 503
    return found


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
@public
def metrics(request: Request, context: Ctx) -> Response:
    """Experiments by status, age of the queue, live workers, and request times by route."""
    return Response(request.app.state.telemetry.render(context), media_type=CONTENT_TYPE_LATEST)
