"""POST /v1/housekeeping."""

from typing import Annotated

from fastapi import APIRouter, Body

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import JsonBody
from app.core.security import ADMIN, needs
from app.operations.housekeeping.report import Report
from app.operations.housekeeping.schemas import HousekeepingRequest
from app.operations.housekeeping.service import run_housekeeping

router = APIRouter(prefix="/v1", tags=["housekeeping"])
EXAMPLES = {
    "orphans": {"summary": "Orphans only", "value": {}},
    "policy": {
        "summary": "Try a policy",
        "value": {
            "policy": {
                "rules": [{"days": 90}, {"days": 7, "tag": "scratch"}],
                "stage_days": 30,
                "keep": ["keep"],
            }
        },
    },
}


@router.post(
    "/housekeeping",
    summary="Apply a retention policy",
    responses=problems(400, 413, 415, 422, 503),
)
@needs(ADMIN)
def housekeeping(
    request: Annotated[HousekeepingRequest, Body(openapi_examples=EXAMPLES)], context: Ctx, _json: JsonBody
) -> Report:
    """Delete files that a policy does not keep, cached stages, and orphans, of all owners. A dry run unless `delete` is
    true: it reports what would be deleted, and how many bytes. Results, and files of experiments that are queued or
    running, are never deleted. Requests for a deleted file get 410 and the reason."""
    return run_housekeeping(context, request.policy or context.settings.retention, delete=request.delete)
