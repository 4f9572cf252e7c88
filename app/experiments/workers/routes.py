"""GET /v1/workers."""

from fastapi import APIRouter

from app.core.context import Ctx
from app.experiments.workers import service
from app.experiments.workers.schemas import Workers

router = APIRouter(prefix="/v1", tags=["health"])


@router.get("/workers", summary="Workers and queues")
def get_workers(context: Ctx) -> Workers:
    """Every worker process with its queues, device, memory, state and version, and the length of every queue.

    Workers report every few seconds. Queues are counted over all owners; the experiment that a worker runs is shown
    only to its owner and to keys with the scope `admin`.
    """
    return service.overview(context)
