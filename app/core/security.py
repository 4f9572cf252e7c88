"""The service's own secret, with which it signs what it hands out and wants back unchanged."""

import os
import secrets
from hashlib import sha256
from hmac import compare_digest
from hmac import new as hmac
from pathlib import Path

from app.settings import Settings


class Signer:
    """Signs and checks short texts."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, data: bytes) -> bytes:
        """16 bytes that only the holder of the secret can make."""
        return hmac(self._secret, data, sha256).digest()[:16]

    def fits(self, data: bytes, signature: bytes) -> bool:
        return compare_digest(self.sign(data), signature)


def make_signer(settings: Settings) -> Signer:
    """A signer with the secret of the settings, or of the file ``secret`` under home, made at the first start."""
    given = settings.secret.get_secret_value()
    return Signer(given.encode() if given else _from_file(settings.home_dir / "secret"))


def _from_file(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(mine, path)  # unlike a rename this never replaces the secret of another process
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_bytes()
