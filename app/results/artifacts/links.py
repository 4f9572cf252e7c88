"""Links to files that work without a key for a while: the bucket's own, or one that this service signs."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import NotFoundError
from app.results.artifacts import service
from app.results.artifacts.schemas import Link
from app.tables.artifacts import Artifact

LONGEST_SECONDS = 86_400
SIGNATURE = 16
PURPOSE = b"download "  # the secret signs other things as well


def make(context: Context, artifact: Artifact, seconds: int, base_url: str) -> Link:
    """A link that works for so many seconds. ``base_url`` is where the client reaches this service."""
    expires = utcnow().replace(microsecond=0) + timedelta(seconds=seconds)
    url = context.objects.signed_url(artifact.object_key, seconds, context.settings.objects_public_endpoint)
    if url is None:
        payload = f"{artifact.id} {int(expires.timestamp())}".encode()
        token = urlsafe_b64encode(context.signer.sign(PURPOSE + payload) + payload).decode().rstrip("=")
        url = f"{base_url.rstrip('/')}/v1/downloads/{token}"
    return Link(
        url=url,
        expires_at=expires,
        file_name=service.file_name(artifact),
        size=artifact.size,
        sha256=artifact.sha256,
        backdoored=bool(artifact.details.get("backdoored")),
    )


def follow(context: Context, token: str) -> Artifact:
    """The file to which a link of ours leads. Raises NotFoundError if it is not ours, expired, or leads nowhere."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:  # also what is not ASCII
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not context.signer.fits(PURPOSE + payload, signature):
        raise NotFoundError("this is no link that this service gave out")
    artifact_id, until = payload.decode().split()
    expires = datetime.fromtimestamp(int(until), UTC)
    if expires <= utcnow():
        raise NotFoundError(
            f"this link expired at {expires.isoformat(timespec='seconds')}; ask for a new one"
        )
    return service.find(context, artifact_id)
