"""Zip archives with a bounded table of contents (central directory)."""

import zipfile
from pathlib import Path

from worker.lab.data.checking import BadSourceError

MAX_CONTENTS_BYTES = 64 * 2**20
"""Largest accepted table of contents: about 600,000 files. zipfile needs about ten times its size in memory."""
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _RECORD_BYTES, _LONGEST_COMMENT = 22, 20, 56, 65_535
_ELSEWHERE = 2**32 - 1  # a 32-bit size of this value is given in the 64-bit record


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open the archive at ``path``. Raises BadSourceError if its directory is too large, BadZipFile if unreadable."""
    size = _contents_bytes(path)
    if size > MAX_CONTENTS_BYTES:
        raise BadSourceError(
            f"{path}: the table of contents has {size >> 20} MiB; at most {MAX_CONTENTS_BYTES >> 20} are accepted"
        )
    return zipfile.ZipFile(path)


def _contents_bytes(path: Path) -> int:
    """The largest declared size of the table of contents; 0 if the file is not an archive.

    Looks where zipfile looks, which prefers an end record without a comment.
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
        sizes = [_number(tail, end + 12, 4)]
        locator = max(0, end - _LOCATOR_BYTES)
        if tail[locator:].startswith(_LOCATOR_64):
            file.seek(min(_number(tail, locator + 8, 8), start + end))
            # Some versions of zipfile follow the locator, others read the record right before it.
            records = (file.read(_RECORD_BYTES), tail[max(0, locator - _RECORD_BYTES) : locator])
            sizes += [_number(record, 40, 8) for record in records if record.startswith(_END_64)]
    return max([size for size in sizes if size != _ELSEWHERE] or sizes)


def _number(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "little")
