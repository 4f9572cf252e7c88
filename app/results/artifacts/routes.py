"""The list of an experiment's files, and their bytes."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.core.context import Context, Ctx
from app.core.errors import ForbiddenError
from app.core.openapi import problems
from app.core.security import BACKDOORED, public
from app.results.artifacts import links, service
from app.results.artifacts.links import LONGEST_SECONDS
from app.results.artifacts.schemas import Artifacts, Link
from app.results.artifacts.serving import serve
from app.specs.artifacts import ArtifactKind
from app.tables.artifacts import Artifact
from app.team.audit.middleware import mark

router = APIRouter(prefix="/v1", tags=["artifacts"])
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
PARTIAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asks for.", "content": BYTES},
    304: {"description": "Not modified: `If-None-Match` names the file's hash."},
}
# `serve` reads these itself; the routes name them for the API page.
Range = Annotated[str | None, Header(description="One range of bytes", examples=["bytes=0-99"])]
IfNoneMatch = Annotated[str | None, Header()]
IfRange = Annotated[str | None, Header()]


@router.get(
    "/experiments/{experiment_id}/artifacts", summary="Files of an experiment", responses=problems(404, 422)
)
def listing(
    experiment_id: str,
    context: Ctx,
    kind: ArtifactKind | None = None,
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
        **PARTIAL,
        **problems(404, 410, 416, 503),
    },
)
@router.head("/artifacts/{artifact_id}/content", include_in_schema=False)
async def content(
    request: Request,
    artifact_id: str,
    context: Ctx,
    range: Range = None,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
) -> Response:
    """The file as it was stored. The ETag is its SHA-256. A file that the retention policy let go is a 410.

    Models and training data that carry a backdoor say `X-Backdoored: true`, and need a key with the scope
    `artifacts:backdoored`.
    """
    artifact = await run_in_threadpool(service.find, context, artifact_id)
    check_scope(request, context, artifact)
    return await serve(request, context, artifact)


@router.get(
    "/artifacts/{artifact_id}/link",
    summary="A link to a file that needs no key",
    responses=problems(403, 404, 410, 422),
)
def link(
    request: Request,
    response: Response,
    artifact_id: str,
    context: Ctx,
    seconds: Annotated[int, Query(ge=1, le=LONGEST_SECONDS, description="How long it works")] = 600,
) -> Link:
    """Whoever has the link can fetch the file until it expires: another machine, a browser, a colleague.

    With S3 the link leads straight to the bucket, so large files do not pass through this service. Otherwise it leads
    here. It cannot be revoked. A file that carries a backdoor needs a key with the scope `artifacts:backdoored`.
    """
    artifact = service.find(context, artifact_id)
    check_scope(request, context, artifact)
    response.headers["Cache-Control"] = "no-store"
    return links.make(context, artifact, seconds, str(request.base_url))


@router.get(
    "/downloads/{token}",
    summary="Bytes of a file, by a link",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": BYTES},
        **PARTIAL,
        **problems(404, 410, 416, 503),
    },
)
@router.head("/downloads/{token}", include_in_schema=False)
@public
async def download(
    request: Request,
    token: str,
    context: Ctx,
    range: Range = None,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
) -> Response:
    """What `GET /v1/artifacts/{artifact_id}/link` leads to where the files are in a folder. It needs no key."""
    artifact = await run_in_threadpool(links.follow, context, token)
    return await serve(request, context, artifact)


def check_scope(request: Request, context: Context, artifact: Artifact) -> None:
    """Raises ForbiddenError if the file carries a backdoor, which this key may not have."""
    if artifact.details.get("backdoored"):
        mark(request)
        if BACKDOORED not in context.principal.scopes:
            raise ForbiddenError(
                f"this file carries a backdoor; it needs a key with the scope {BACKDOORED!r}"
            )
