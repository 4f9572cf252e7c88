"""The list of an experiment's files, and their bytes."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from app.artifacts import service
from app.artifacts.schemas import Artifacts, Kind
from app.audit.trail import mark
from app.core.context import Ctx
from app.core.errors import ForbiddenError, NotFoundError
from app.core.openapi import problems
from app.core.security import BACKDOORED

router = APIRouter(prefix="/v1", tags=["artifacts"])
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/experiments/{experiment_id}/artifacts", summary="Files of an experiment", responses=problems(404, 422)
)
def listing(
    experiment_id: str,
    context: Ctx,
    kind: Kind | None = None,
    arm: Annotated[str | None, Query(examples=["abl"])] = None,
    seed: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
) -> Artifacts:
    """Figures, checkpoints and tables, by name. They appear as the experiment goes on."""
    return service.listing(context, experiment_id, kind, arm, seed)


@router.get(
    "/artifacts/{artifact_id}/content",
    summary="Bytes of a file",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": BYTES},
        206: {"description": "The part that `Range` asks for.", "content": BYTES},
        304: {"description": "Not modified: `If-None-Match` names the file's hash."},
        **problems(404, 416, 503),
    },
)
@router.head("/artifacts/{artifact_id}/content", include_in_schema=False)
async def content(
    request: Request,
    artifact_id: str,
    context: Ctx,
    range: Annotated[str | None, Header(description="One range of bytes", examples=["bytes=0-99"])] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """The file as it was stored. The ETag is its SHA-256.

    Models and training data that carry a backdoor say `X-Backdoored: true`, and need a key with the scope
    `artifacts:backdoored`.
    """
    artifact = await run_in_threadpool(service.find, context, artifact_id)
    tag = f'"{artifact.sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{service.file_name(artifact)}"',
        "X-Content-Type-Options": "nosniff",
    }
    if artifact.details.get("backdoored"):
        headers["X-Backdoored"] = "true"
        mark(request)
        if BACKDOORED not in context.principal.scopes:
            raise ForbiddenError(
                f"this file carries a backdoor; it needs a key with the scope {BACKDOORED!r}"
            )
    if if_none_match and ("*" in if_none_match or tag in if_none_match):
        return Response(status_code=304, headers=headers)
    wanted = None
    if request.method == "GET" and (if_range is None or if_range == tag):
        wanted = service.part(range, artifact.size)
    start, stop = wanted or (0, artifact.size)
    headers["Content-Length"] = str(stop - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size}"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=artifact.media_type)
    chunks = await context.objects.stream(artifact.object_key, start, stop)
    if chunks is None:
        raise NotFoundError(f"the file of artifact {artifact_id} is no longer in the object store")
    status = 206 if wanted else 200
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type=artifact.media_type)
