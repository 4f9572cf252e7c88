"""The object store, tried with an object of our own; and the data sets."""

import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx2

from app.core.database import new_id
from app.core.objects import Objects, ObjectStoreError
from app.data.local_datasets import command, imported, present
from app.operations.doctor.databases import clock
from app.operations.doctor.findings import Finding, Patient, error, ok, reason, warning
from app.specs.facts import BUILT_IN

PROBE = "doctor-"
"""Prefix of the keys of test objects; `app.operations.housekeeping` deletes one that a killed doctor left."""
LINK_SECONDS = 60
MENDS = {
    "nosuchbucket": "create the bucket, or correct its name in BDLAB_OBJECTS_URL",
    "not found": "create the bucket, or correct its name in BDLAB_OBJECTS_URL",
    "invalidaccesskeyid": "correct AWS_ACCESS_KEY_ID",
    "signaturedoesnotmatch": "correct AWS_SECRET_ACCESS_KEY",
    "requesttimetooskewed": "set this machine's clock",
    "accessdenied": "allow this key to list, read, write and delete in the bucket",
    "403": "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and let them read and write the bucket",
    "credential": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "169.254.169.254": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "builder error": "set AWS_ALLOW_HTTP=true if the endpoint has no TLS",
    "connect": "correct AWS_ENDPOINT_URL, or start the store there",
    "permission": "run this as the user that runs the service",
    "no space": "free space there",
    "no such file": "make the folder, or correct BDLAB_OBJECTS_URL or BDLAB_HOME",
    "not a directory": "make the folder, or correct BDLAB_OBJECTS_URL or BDLAB_HOME",
}
EXAMPLE = "set BDLAB_OBJECTS_URL as in s3://bucket/prefix or file:///folder, or unset it"


def objects(patient: Patient) -> Iterator[Finding]:
    """Write, read, and delete; and a signed link where the store makes them."""
    url = patient.settings.objects
    if not url.startswith(("file://", "s3://")):
        yield error("objects", f"{url!r} is neither a folder nor a bucket", EXAMPLE)
        return
    key, content = f"{PROBE}{new_id()}", b"bdlab doctor"
    try:
        store = Objects(url)
        began = time.monotonic()
        store.put(key, content)
        try:
            back = store.get(key)
            took = (time.monotonic() - began) * 1000
            found = list(_link(store, key, content, patient.settings.objects_public_endpoint))
        finally:
            store.delete(key)
        left = store.exists(key)
    except ObjectStoreError as fault:
        text = f"{fault} {fault.__cause__}".lower()
        mend = next((mend for sign, mend in MENDS.items() if sign in text), EXAMPLE)
        yield error("objects", f"{url}: {reason(fault)}", mend)
        return
    if back != content or left:
        broken = "gives back other bytes than it was given" if back != content else "does not delete"
        yield error(
            "objects", f"{url} {broken}", "it must be consistent: a write is seen by every read after it"
        )
        return
    yield ok("objects", f"{url}: written, read and deleted in {took:.0f} ms")
    yield from found
    patient.objects = store


def _link(store: Objects, key: str, content: bytes, endpoint: str) -> Iterator[Finding]:
    link = store.signed_url(key, LINK_SECONDS, endpoint)
    if link is None:
        return
    mend = f"correct {'BDLAB_OBJECTS_PUBLIC_ENDPOINT' if endpoint else 'AWS_ENDPOINT_URL'}"
    began = time.monotonic()
    try:
        answer = httpx2.get(link, timeout=10)
    except httpx2.HTTPError as fault:
        found = warning if endpoint else error  # clients may well reach what this machine does not
        yield found("objects", f"a signed link leads nowhere: {reason(fault)}", mend)
        return
    if answer.status_code != 200 or answer.content != content:
        yield error(
            "objects", f"a signed link is answered with {answer.status_code}", "let the key sign GET requests"
        )
    else:
        yield ok("objects", f"signed links work, {(time.monotonic() - began) * 1000:.0f} ms")
    if (there := _date(answer.headers.get("date", ""))) is not None:
        yield clock("objects", there)


def _date(header: str) -> datetime | None:
    try:
        return parsedate_to_datetime(header)
    except ValueError:
        return None


def data_sets(patient: Patient) -> Iterator[Finding]:
    """Which are on this machine."""
    folder = patient.settings.datasets
    if not folder.is_dir():
        yield ok("data sets", f"digits alone; {folder} is not there, and made when a data set comes")
        return
    here = [name for name in BUILT_IN if present(name, folder)]
    keys = imported(folder)
    damaged = sorted({path.stem for path in (folder / "imported").glob("*.safetensors")} - set(keys))
    for key in damaged:
        yield error(
            "data sets",
            f"the file of the imported set {key!r} is damaged",
            f"bdlab data import FILE --name {key}",
        )
    missing = [name for name in BUILT_IN if name not in here]
    detail = f"{', '.join(here)}; imported: {', '.join(keys) or 'none'}"
    if missing:
        yield warning(
            "data sets",
            f"{detail}; not here: {', '.join(missing)}",
            f"{'; '.join(str(command(name)) for name in missing)}, if specs name them",
        )
    else:
        yield ok("data sets", detail)
