"""Decoding of picture files that somebody else made: the only place that calls Pillow's readers on the server side.

Pillow has some fifty readers. Several run external programs or are rarely tested, so only those in `FORMATS` are ever
given a file, and the size that the header declares is checked before a pixel is decoded.
"""

import io
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
ALLOWED = "PNG, JPEG, WebP, BMP, GIF, PPM, PGM and TIFF"
MAX_SIDE = 4096
"""Largest accepted width and height in pixels: a small file can decode to a huge picture."""
DAMAGED = "is not a readable picture: its header is sound, but the rest is damaged"
TILE_WIDTH, TILE_HEIGHT = 322, 323
"""The tags of a TIFF file with the size of its tiles, which may be much larger than the picture."""


class PictureError(ValueError):
    """A file that is not accepted. The message completes a sentence that begins with the name of the file or field."""


class PictureSizeError(PictureError):
    """The picture has too many pixels."""


def verify(data: bytes, formats: tuple[str, ...] = FORMATS) -> "Image":
    """The picture in ``data``, for its size and mode: nothing has been decoded, but checksums have been compared.

    Raises PictureError.
    """
    picture = _open(data, formats)
    try:
        picture.verify()
    except Exception as error:
        raise PictureError(DAMAGED) from error
    return picture


def decode(data: bytes, mode: str | None = None, formats: tuple[str, ...] = FORMATS) -> "Image":
    """The first picture in ``data``, decoded and converted to Pillow's ``mode``; None keeps its own.

    Raises PictureError.
    """
    picture = _open(data, formats)
    try:
        picture.load()
        return picture if mode is None else picture.convert(mode)
    except Exception as error:
        raise PictureError(DAMAGED) from error


def _open(data: bytes, formats: tuple[str, ...]) -> "Image":
    """The picture, of which only the header has been read. Raises PictureError."""
    pillow = _pillow()
    try:
        picture: Image = pillow.open(io.BytesIO(data), formats=formats)
    except pillow.DecompressionBombError as error:
        raise PictureSizeError(f"has too many pixels; allowed: at most {MAX_SIDE} a side") from error
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        allowed = ALLOWED if formats == FORMATS else " or ".join(formats)
        raise PictureError(f"is not a readable picture; allowed: {allowed}") from error
    tags: Any = getattr(picture, "tag_v2", {})
    tile = (tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0))
    for width, height in (picture.size, tile):
        if max(width, height) > MAX_SIDE:
            raise PictureSizeError(f"is {width}x{height}; allowed: at most {MAX_SIDE} pixels a side")
    return picture


@cache
def _pillow() -> Any:
    """Pillow's module, without its warnings: what they are about is accepted here, or an error."""
    import warnings  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415  # the Python client imports this package without having Pillow

    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image
