"""What an API key looks like, and how it is kept.

``bdlab_<prefix>_<secret>``: the prefix finds the row and may be shown, the secret is 32 random bytes. With that much
randomness a slow hash adds nothing; the pepper, which is not in the database, keeps a copy of the database from
being enough to test guesses.
"""

import re
import secrets
from hashlib import sha256
from hmac import compare_digest
from hmac import new as hmac
from typing import NamedTuple

from app.core.security import secret_of
from app.settings import Settings

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
PREFIX = 8
_KEY = re.compile(rf"bdlab_([{ALPHABET}]{{{PREFIX}}})_[A-Za-z0-9_-]{{43}}")


class NewKey(NamedTuple):
    """A key, and what is stored of it."""

    key: str
    prefix: str
    digest: str


class Pepper:
    """Turns keys into digests. The same settings on every host give the same digests."""

    def __init__(self, settings: Settings) -> None:
        given = settings.key_pepper.get_secret_value()
        self._pepper = given.encode() if given else secret_of(settings)

    def new(self) -> NewKey:
        """A random key."""
        prefix = "".join(secrets.choice(ALPHABET) for _ in range(PREFIX))
        key = f"bdlab_{prefix}_{secrets.token_urlsafe(32)}"
        return NewKey(key, prefix, self.digest(key))

    def digest(self, key: str) -> str:
        return hmac(self._pepper, key.encode(), sha256).hexdigest()

    def fits(self, key: str, digest: str) -> bool:
        """Whether this is the key; takes the same time whatever differs."""
        return compare_digest(self.digest(key), digest)


def prefix_of(key: str) -> str | None:
    """The prefix of a well-formed key, or None."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None
