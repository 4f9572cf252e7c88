"""GET /v1/audit."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query

from app.core import pagination
from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, Limit
from app.core.security import ADMIN, needs
from app.team.audit import repository
from app.team.audit.schemas import Audit, AuditOut

router = APIRouter(prefix="/v1", tags=["keys"], dependencies=[Depends(reject_unknown_parameters)])


@router.get("/audit", summary="The audit log", responses=problems(400, 422))
@needs(ADMIN)
def audit(
    context: Ctx,
    owner: Annotated[str | None, Query(max_length=100, examples=["vision-team"])] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Audit:
    """Every request that could change something, with who sent it and how it ended, and every download of models or
    data that carry a backdoor. Of all owners, the newest first. Nothing can change or delete an entry."""
    before = None
    if cursor is not None:
        before = int(pagination.decode(context.signer, ["audit", owner], cursor)[0])
    with context.database.whole.reading() as session:
        rows = repository.page(session, owner, before, limit + 1)
    entries = [AuditOut.model_validate(row, from_attributes=True) for row in rows[:limit]]
    link = None
    if len(rows) > limit:
        following = pagination.encode(context.signer, ["audit", owner], [str(entries[-1].id)])
        query = {"owner": owner, "limit": limit, "cursor": following}
        link = f"/v1/audit?{urlencode({k: v for k, v in query.items() if v is not None})}"
    return Audit(entries=entries, next=link)
