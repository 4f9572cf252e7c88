"""A multipart form that is parsed while it arrives, so that its file is never in memory as a whole."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from hashlib import sha256

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.core.errors import BadRequestError, InvalidError, MediaTypeError, StalledError, TooLargeError
from app.core.validation import shown

PARTS = ("metadata", "file")
LONGEST_METADATA = 64 * 1024
LONGEST_PAUSE_SECONDS = 60.0
SLOWEST = 8 * 1024
"""Least mean bytes per second of an upload, after the first minute."""


@dataclass
class Form:
    """``metadata`` and ``file`` of a multipart form; ``size``, ``digest`` and ``file_name`` are those of the file."""

    content_type: str
    limit: int
    count: Callable[[int], None] = lambda _: None
    """Gets the size of each piece of the file; what it raises ends the upload."""
    metadata: bytes | None = None
    size: int = 0
    digest: str = ""
    file_name: str | None = None

    async def file(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The file in chunks. The other fields are set after the last one.

        Raises BadRequestError, InvalidError, MediaTypeError, StalledError, TooLargeError, and what ``count`` raises.
        """
        parts = _Parts(_boundary(self.content_type))
        hashed = sha256()
        async for chunk in _in_time(body):
            parts.write(chunk)
            for name, piece in parts.take_pieces():
                if name == "metadata":
                    self.metadata = (self.metadata or b"") + piece
                    if len(self.metadata) > LONGEST_METADATA:
                        raise TooLargeError(f"metadata: at most {LONGEST_METADATA} bytes are allowed")
                    continue
                self.size += len(piece)
                if self.size > self.limit:
                    raise TooLargeError(f"file: at most {self.limit} bytes are allowed")
                self.count(len(piece))
                hashed.update(piece)
                yield piece
        parts.end()
        self.digest, self.file_name = hashed.hexdigest(), parts.file_name
        if not self.size:
            raise InvalidError.of("file", None, "the form has no part `file`, or it is empty")


class _Parts:
    """Collects the parser's callbacks as pairs of part and piece."""

    def __init__(self, boundary: bytes) -> None:
        self.file_name: str | None = None
        self._pieces: list[tuple[str, bytes]] = []
        self._seen: set[str] = set()
        self._part = ""
        self._header = self._value = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_to_header,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequestError(f"the body is not a multipart form: {error}") from error

    def take_pieces(self) -> list[tuple[str, bytes]]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> None:
        if not self._ended:
            raise BadRequestError("the body ends before the form is complete")

    def _begin(self) -> None:
        self._part = ""

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._part = options.get(b"name", b"").decode(errors="replace")
            if self._part == "file" and b"filename" in options:
                self.file_name = options[b"filename"].decode(errors="replace")
        self._header = self._value = b""

    def _check(self) -> None:
        if self._part not in PARTS:
            raise InvalidError.of(
                shown(self._part), None, f"unknown part of the form; allowed: {', '.join(PARTS)}"
            )
        if self._part in self._seen:
            raise InvalidError.of(self._part, None, "the form has this part twice")
        self._seen.add(self._part)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append((self._part, data[start:end]))

    def _end(self) -> None:
        self._ended = True


async def _in_time(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces. Raises StalledError if they arrive too slowly."""
    began, received = time.monotonic(), 0
    pieces = aiter(body)
    while True:
        try:
            async with asyncio.timeout(LONGEST_PAUSE_SECONDS):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise StalledError(f"nothing arrived for {LONGEST_PAUSE_SECONDS:g} s") from error
        received += len(piece)
        if time.monotonic() - began > LONGEST_PAUSE_SECONDS + received / SLOWEST:
            raise StalledError(f"the body arrives at less than {SLOWEST} bytes per second")
        yield piece


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise MediaTypeError(
            f"the body is {shown(content_type) or 'of no type'}; send multipart/form-data with metadata and file"
        )
    return options[b"boundary"]
