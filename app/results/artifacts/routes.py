"""The files of an experiment: their list, their bytes, and links to them."""

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
from app.team.access import is_local
from app.team.audit.middleware import force_audit

router = APIRouter(prefix="/v1", tags=["artifacts"])
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": BYTES},
    206: {"description": "The requested range.", "content": BYTES},
    304: {"description": "Not modified: `If-None-Match` contains the hash of the file."},
    **problems(404, 410, 416, 503),
}
# `serve` reads these headers from the request; the parameters put them into the OpenAPI document.
Range = Annotated[str | None, Header(description="A single range of bytes", examples=["bytes=0-99"])]
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
    """Figures, checkpoints, tables and data, sorted by name. Files appear while the experiment runs."""
    return service.list_artifacts(context, experiment_id, kind, arm, seed)


@router.get(
    "/artifacts/{artifact_id}/content",
    summary="Bytes of a file",
    response_class=Response,
    responses=FILE,
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
    """The ETag is the SHA-256 of the file. A file that the retention policy deleted is a 410.

    Models and training data that carry a backdoor are sent with `X-Backdoored: true` and require a key with the scope
    `artifacts:backdoored`.
    """
    artifact = await run_in_threadpool(service.get_artifact, context, artifact_id)
    check_scope(request, context, artifact)
    return await serve(request, context, artifact)


@router.get(
    "/artifacts/{artifact_id}/link",
    summary="Create a link to a file that needs no key",
    responses=problems(403, 404, 410, 422),
)
def link(
    request: Request,
    artifact_id: str,
    context: Ctx,
    seconds: Annotated[int, Query(ge=1, le=LONGEST_SECONDS, description="Lifetime of the link")] = 600,
) -> Link:
    """Anyone who has the link can download the file until the link expires. A link cannot be revoked.

    With S3 the link leads directly to the bucket, so large files do not pass through this service; otherwise it leads
    to `GET /v1/downloads/{token}`, as a path if the service does not know its URL. A file that carries a backdoor
    requires a key with the scope `artifacts:backdoored`.
    """
    artifact = service.get_artifact(context, artifact_id)
    check_scope(request, context, artifact)
    return links.make(context, artifact, seconds, context.settings.public_url or _url_of_connection(request))


@router.get(
    "/downloads/{token}",
    summary="Bytes of a file by its link",
    response_class=Response,
    responses=FILE,
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
    """The target of `GET /v1/artifacts/{artifact_id}/link` if files are stored in a folder. It needs no key."""
    artifact = await run_in_threadpool(links.follow, context, token)
    return await serve(request, context, artifact)


def _url_of_connection(request: Request) -> str:
    """The service's URL for a sender on this machine, else empty: the ``Host`` of a request may be anybody's."""
    host, port = request.scope.get("server") or ("", None)
    if port is None or not is_local(request):
        return ""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_scope(request: Request, context: Context, artifact: Artifact) -> None:
    """Raises ForbiddenError if the file carries a backdoor and the key lacks the scope for such files."""
    if artifact.details.get("backdoored"):
        force_audit(request)
        if BACKDOORED not in context.principal.scopes:
            raise ForbiddenError(
                f"this file carries a backdoor; it requires a key with the scope {BACKDOORED!r}"
            )
