"""Signatures of the Standard Webhooks specification (https://www.standardwebhooks.com), symmetric scheme ``v1``.

The secret is needed to sign, so a digest of it is not enough. Instead of storing the secret, it is derived from the
service's own secret and a random salt: with a copy of the database alone nobody can forge a signature.
"""

import base64
import secrets
from hashlib import sha256
from hmac import compare_digest
from hmac import new as hmac
from typing import NamedTuple

from app.core.security import secret_of
from app.settings import Settings

PREFIX = "whsec_"
SALT_BYTES = 16


class NewSecret(NamedTuple):
    """A signing secret, and what is stored to derive and check it."""

    secret: str
    salt: str
    digest: str


class Keys:
    """Derives the signing secrets of webhooks. Equal settings on all hosts give equal secrets."""

    def __init__(self, settings: Settings) -> None:
        self._secret = secret_of(settings)

    def new(self) -> NewSecret:
        """A new secret."""
        salt = secrets.token_hex(SALT_BYTES)
        secret = self.secret(salt)
        return NewSecret(secret, salt, _digest(secret))

    def secret(self, salt: str) -> str:
        """``whsec_`` and 32 bytes in base64."""
        key = hmac(self._secret, f"webhook signing secret {salt}".encode(), sha256).digest()
        return PREFIX + base64.b64encode(key).decode()

    def fits(self, salt: str, digest: str) -> bool:
        """Whether the derived secret is still the one that the receiver got."""
        return compare_digest(_digest(self.secret(salt)), digest)


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature for the header ``webhook-signature``."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac(key, signed, sha256).digest()).decode()


def headers(signing_secrets: list[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers, with a signature by each secret, so that secrets can be rotated without a gap."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(
            sign(secret, message_id, timestamp, body) for secret in signing_secrets
        ),
    }


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
