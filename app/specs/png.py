"""Shape of an uploaded PNG, read from its header with the standard library alone."""

import base64
import binascii
import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _COLOR, _PALETTE = 0, 2, 3


def png_shape(text: str) -> tuple[int, int, int]:
    """(channels, height, width) of a base64 PNG: 1 channel if gray, 3 if in color.

    Raises ValueError if the text is no base64, the file no whole PNG, or one of a kind that is not taken.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"this is not base64 ({error})") from error
    if not data.startswith(SIGNATURE):
        raise ValueError("this is not a PNG file")
    chunks = _chunks(data)
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1][0] != b"IEND":
        raise ValueError("this PNG file is cut off or damaged")
    width, height, depth, color = struct.unpack(">IIBB", chunks[0][1][:10])
    kinds = {kind for kind, _ in chunks}
    if depth != 8 or color not in (_GRAY, _COLOR, _PALETTE) or b"tRNS" in kinds:
        raise ValueError("only PNG files of 8 bits a channel without transparency are taken")
    if b"IDAT" not in kinds:
        raise ValueError("this PNG file holds no picture")
    return (1 if color == _GRAY else 3), height, width


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of every chunk, each checked against its CRC."""
    chunks, at = [], len(SIGNATURE)
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError("this PNG file is cut off")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content, crc = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(crc) < 4 or zlib.crc32(kind + content) != int.from_bytes(crc, "big"):
            raise ValueError("this PNG file is cut off or damaged")
        chunks.append((kind, content))
        at += 12 + length
    return chunks
