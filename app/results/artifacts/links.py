"""Links to files that work without a key until they expire: presigned by S3, or signed by this service."""

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
PURPOSE = b"download "  # so that no other signature by the same secret is a valid link


def make(context: Context, artifact: Artifact, seconds: int, base_url: str) -> Link:
    """A link that expires after ``seconds``. ``base_url`` is this service's URL as the client sees it, or empty."""
    expires = utcnow() + timedelta(seconds=seconds)
    url = context.objects.signed_url(artifact.object_key, seconds, context.settings.objects_public_endpoint)
    if url is None:
        payload = f"{artifact.id} {expires.timestamp()}".encode()
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
    """The file that a link of this service leads to. Raises NotFoundError for an invalid or expired link."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        raw = b""
    signature, payload = raw[:SIGNATURE], raw[SIGNATURE:]
    if not context.signer.fits(PURPOSE + payload, signature):
        raise NotFoundError("this link was not issued by this service")
    artifact_id, timestamp = payload.decode().split()
    expires = datetime.fromtimestamp(float(timestamp), UTC)
    if expires <= utcnow():
        raise NotFoundError(
            f"this link expired at {expires.isoformat(timespec='seconds')}; request a new one"
        )
    return service.get_artifact(context, artifact_id)
