"""GET /v1/audit."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.pagination import paginate
from app.core.routing import Cursor, Limit, paged
from app.core.security import ADMIN, needs
from app.team.audit import repository
from app.team.audit.schemas import Audit, AuditOut

router = APIRouter(prefix="/v1", tags=["keys"])


@router.get("/audit", response_model=Audit, summary="The audit log", responses=problems(400, 422))
@needs(ADMIN)
def audit(
    request: Request,
    context: Ctx,
    owner: Annotated[str | None, Query(max_length=100, examples=["vision-team"])] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All requests that could change something, with their sender and outcome, and all downloads of models or data
    that carry a backdoor. For all owners, newest first. Entries cannot be changed, nor
    deleted for at least 30 days."""
    with context.database.whole.reading() as session:
        rows, following = paginate(
            context.signer,
            ["audit", owner],
            cursor,
            limit,
            lambda after, most: repository.page(session, owner, after[0] if after else None, most),
            lambda row: [row.id],
        )
    entries = [AuditOut.model_validate(row, from_attributes=True) for row in rows]
    return paged(request, following, lambda link: Audit(entries=entries, next=link))
