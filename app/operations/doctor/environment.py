"""The settings themselves, the home folder, the secret."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from app.operations.doctor.findings import Finding, Patient, error, ok, reason, warning
from app.settings import Settings

CLIENTS = {"BDLAB_URL", "BDLAB_API_KEY"}
SHORTEST_SECRET = 16
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre")


def unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables with our prefix that nothing reads."""
    known = {f"BDLAB_{name.upper()}" for name in Settings.model_fields} | CLIENTS
    for name in sorted(name for name in environ if name.startswith("BDLAB_") and name not in known):
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield warning("settings", f"{name} is no setting; nothing reads it", f"{hint}unset it")


def refused(fault: ValidationError) -> Iterator[Finding]:
    """Settings whose values are not allowed."""
    for one in fault.errors():
        name = f"BDLAB_{'.'.join(map(str, one['loc'])).upper()}"
        secret = name.startswith(("BDLAB_SECRET", "BDLAB_KEY_PEPPER"))
        shown = "***" if secret else repr(one["input"])[:100]
        yield error(
            "settings", f"{name}={shown} is not allowed", f"{one['msg'].lower()}; unset it for its default"
        )


def settings(patient: Patient) -> Iterator[Finding]:
    """Settings that are allowed one by one but do not fit together."""
    given = patient.settings
    faults = []
    if given.lease_seconds < 2 * given.heartbeat_seconds:
        faults.append(
            warning(
                "settings",
                f"a lease of {given.lease_seconds:g} s is lost with one late heartbeat, "
                f"which comes every {given.heartbeat_seconds:g} s",
                "set BDLAB_LEASE_SECONDS to at least three times BDLAB_HEARTBEAT_SECONDS",
            )
        )
    if given.database_url and not given.database_url.startswith("sqlite"):
        parts = {"BDLAB_BROKER_URL": given.broker_url, "BDLAB_OBJECTS_URL": given.objects_url}
        faults += [
            warning(
                "settings",
                f"the database may be shared between hosts, but {name} is not set, so that part is this host's own",
                f"set {name}, unless everything runs here",
            )
            for name, url in parts.items()
            if not url
        ]
    yield from faults or [
        ok("settings", f"{len(given.model_fields_set)} set, the others have their defaults")
    ]


def home(patient: Patient) -> Iterator[Finding]:
    """The folder for everything that the embedded default writes."""
    folder = patient.settings.home_dir
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if not os.access(parent, os.W_OK):
            yield error("home", f"{folder} cannot be made: {parent} is not writable", "set BDLAB_HOME")
            return
        yield ok("home", f"{folder} will be made by the first start")
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as fault:
        yield error(
            "home", f"cannot write in {folder}: {reason(fault)}", "set BDLAB_HOME to a folder of your own"
        )
        return
    patient.up = _locked(folder / "lock")
    yield ok("home", f"{folder}; `bdlab up` {'runs' if patient.up else 'does not run'} on it")


def secret(patient: Patient) -> Iterator[Finding]:
    """What signs cursors and goes into the digests of keys."""
    given, path = patient.settings.secret.get_secret_value(), patient.settings.home_dir / "secret"
    if given:
        if len(given) < SHORTEST_SECRET:
            yield warning("secret", f"BDLAB_SECRET has {len(given)} characters", "openssl rand -hex 32")
        else:
            yield ok("secret", "from BDLAB_SECRET")
    elif patient.settings.database_url and not patient.settings.database_url.startswith("sqlite"):
        yield warning(
            "secret",
            "BDLAB_SECRET is not set: each API host has a secret of its own, and takes no other's keys and cursors",
            "give all hosts the same BDLAB_SECRET; where keys are in use, the content of the file `secret` under home",
        )
    elif not path.exists():
        yield ok("secret", "will be made by the first start")
    elif path.stat().st_mode & 0o077:
        yield error("secret", f"other users can read {path}", f"chmod 600 {path}")
    elif not os.access(path, os.R_OK):
        yield error("secret", f"{path} cannot be read", "run this as the user that runs the service")
    else:
        yield ok("secret", f"from {path}, which this user alone can read")


def file_system(path: Path) -> str:
    """The kind of file system that ``path`` lies on, as Linux calls it; empty where that cannot be known."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    fitting = [(len(m[1]), m[2]) for m in mounts if path.is_relative_to(m[1])]
    return max(fitting, default=(0, ""))[1]


def _locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
