"""The version of the code that this process runs."""

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("app", "worker", "migrations")
DIGITS = 12


@cache
def code_version() -> str:
    """The package's version and a digest of its source at the first call, such as ``0.2.0+4f1d0c2a9b7e``.

    API and workers are installed separately, and the version number alone would not show that their code differs.
    """
    digest = sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(sha256(path.read_bytes()).digest())
    return f"{version('backdoor-lab')}+{digest.hexdigest()[:DIGITS]}"
