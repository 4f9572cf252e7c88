"""Responses with the bytes of a stored file."""

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.core.context import Context
from app.core.errors import NotFoundError
from app.results.artifacts import service
from app.tables.artifacts import Artifact


async def serve(request: Request, context: Context, artifact: Artifact) -> Response:
    """The response of RFC 9110 to GET or HEAD with Range, If-Range and If-None-Match.

    Raises RangeError, ObjectStoreError, or NotFoundError if the object is missing.
    """
    tag = f'"{artifact.sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{service.file_name(artifact)}"',
    }
    if artifact.details.get("backdoored"):
        headers["X-Backdoored"] = "true"
    etags = request.headers.get("if-none-match", "")
    if "*" in etags or tag in etags:
        return Response(status_code=304, headers=headers)
    part = None
    if request.method == "GET" and request.headers.get("if-range", tag) == tag:
        part = service.parse_range(request.headers.get("range"), artifact.size)
    start, stop = part or (0, artifact.size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size}"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=artifact.media_type)
    chunks = await context.objects.stream(artifact.object_key, start, stop)
    if chunks is None:
        raise NotFoundError(f"the file of artifact {artifact.id} is no longer in the object store")
    status = 206 if part else 200
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type=artifact.media_type)
