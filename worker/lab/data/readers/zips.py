"""Zip archives whose table of contents is small enough to be read."""

import zipfile
from pathlib import Path

from worker.lab.data.checking import BadSourceError

MAX_CONTENTS_BYTES = 64 * 2**20
"""Largest accepted table of contents: some 600,000 files. Reading one takes about ten times its size in memory."""
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _RECORD_BYTES, _LONGEST_COMMENT = 22, 20, 56, 65_535
_ELSEWHERE = 2**32 - 1  # the size stands in the 64-bit record


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open the archive at ``path``. Raises BadSourceError if its contents are too many, BadZipFile if it is none."""
    size = _contents_bytes(path)
    if size > MAX_CONTENTS_BYTES:
        raise BadSourceError(
            f"{path}: the table of contents has {size >> 20} MiB; at most {MAX_CONTENTS_BYTES >> 20} are accepted"
        )
    return zipfile.ZipFile(path)


def _contents_bytes(path: Path) -> int:
    """The largest claim to the size of the table of contents; what is no archive has none.

    Looks where zipfile looks, which takes an end record without a comment before any other.
    """
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _LONGEST_COMMENT - _END_BYTES - _LOCATOR_BYTES - _RECORD_BYTES)
        file.seek(start)
        tail = file.read()
        end = len(tail) - _END_BYTES
        if not (tail[end:].startswith(_END) and tail.endswith(b"\0\0")):
            end = tail.rfind(_END)
        if end < 0:
            return 0
        claims = [_number(tail, end + 12, 4)]
        locator = max(0, end - _LOCATOR_BYTES)
        if tail[locator:].startswith(_LOCATOR_64):
            file.seek(min(_number(tail, locator + 8, 8), start + end))
            # Versions of zipfile differ in whether they follow the locator or look right before it.
            records = (file.read(_RECORD_BYTES), tail[max(0, locator - _RECORD_BYTES) : locator])
            claims += [_number(record, 40, 8) for record in records if record.startswith(_END_64)]
    return max([claim for claim in claims if claim != _ELSEWHERE] or claims)


def _number(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "little")
