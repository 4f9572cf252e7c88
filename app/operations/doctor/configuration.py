"""The settings, the home folder, and the secret."""

import fcntl
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from app.operations.doctor.findings import Finding, Installation, error, first_line, ok, warning
from app.settings import Settings, describe_faults

CLIENT_VARIABLES = {"BDLAB_URL", "BDLAB_API_KEY"}


def find_unknown_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables with the service's prefix that are not settings."""
    known = {f"BDLAB_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
    for name in sorted(name for name in environ if name.startswith("BDLAB_") and name not in known):
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield warning("settings", f"{name} is not a setting and is ignored", f"{hint}unset it")


def explain_invalid_settings(invalid: ValidationError) -> Iterator[Finding]:
    for text, reason in describe_faults(invalid):
        yield error("settings", text, f"{reason[:1].lower()}{reason[1:]}; unset it for its default")


def check_settings(installation: Installation) -> Iterator[Finding]:
    """Settings that are valid one by one but not together."""
    settings = installation.settings
    yield ok("settings", f"{len(settings.model_fields_set)} are set, the others have their defaults")
    if settings.lease_seconds < 2 * settings.heartbeat_seconds:
        detail = f"one late heartbeat loses a lease of {settings.lease_seconds:g} s"
        yield warning("settings", detail, "set BDLAB_LEASE_SECONDS to at least 3 x BDLAB_HEARTBEAT_SECONDS")
    if settings.database_url and not settings.database_url.startswith("sqlite"):
        for name in ("broker_url", "objects_url", "secret"):
            if name not in settings.model_fields_set:
                detail = f"BDLAB_{name.upper()} is not set, so each host on this database has its own"
                yield warning("settings", detail, "set it, unless the whole service runs on this host")


def check_home(installation: Installation) -> Iterator[Finding]:
    folder = installation.settings.home_dir
    if not folder.exists():
        yield ok("home", f"the first start creates {folder}")
        return
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as problem:
        detail = f"cannot write in {folder}: {first_line(problem)}"
        yield error("home", detail, "set BDLAB_HOME to a folder that this user may write")
        return
    installation.is_up = _is_locked(folder / "lock")
    yield ok("home", f"{folder}; `bdlab up` {'runs' if installation.is_up else 'does not run'} on it")


def check_secret(installation: Installation) -> Iterator[Finding]:
    path = installation.settings.home_dir / "secret"
    if installation.settings.secret.get_secret_value():
        yield ok("secret", "from BDLAB_SECRET")
    elif not path.exists():
        yield ok("secret", "the first start creates it")
    elif path.stat().st_mode & 0o077:
        yield error("secret", f"other users can read {path}", f"run chmod 600 {path}")
    else:
        yield ok("secret", f"{path}, readable only by its owner")


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
