"""Decoding of picture files that somebody else made: the only place that calls Pillow's readers on the server side.

Pillow has some fifty readers. Several run external programs or are rarely tested, so only those in `FORMATS` are ever
given a file, and the size that the header declares is checked before a pixel is decoded.
"""

import io
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
ALLOWED = "PNG, JPEG, WebP, BMP, GIF, PPM, PGM and TIFF"
MAX_SIDE = 4096
"""Largest accepted width and height in pixels: a small file can decode to a huge picture."""
MAX_RESIZED_SIDE = 16_384
"""The same where pictures are resized, so that only a few are in memory in their own size."""
DAMAGED = "is not a readable picture: its header is sound, but the rest is damaged"
TILE_WIDTH, TILE_HEIGHT = 322, 323
"""The tags of a TIFF file with the size of its tiles, which may be much larger than the picture."""
_SIXTEEN_BITS = re.compile(r";16[BLN]?S?$")
"""The end of the raw modes of 16 bits a channel; Pillow's decoder keeps the upper 8 of those in color."""


WRONG_DEPTH = "a PNG file with a bit depth other than 8"


class PictureError(ValueError):
    """A file that is not accepted. The message completes a sentence that begins with the name of the file or field."""


class PictureSizeError(PictureError):
    """The picture has too many pixels."""


class PictureDepthError(PictureError):
    """The picture has more than 8 bits a channel."""


def verify(data: bytes, formats: tuple[str, ...] = FORMATS) -> "Image":
    """The picture in ``data``, for its size and mode: nothing has been decoded, but checksums have been compared.

    Raises PictureError.
    """
    picture = _open(data, formats, MAX_SIDE)
    try:
        picture.verify()
    except Exception as error:
        raise PictureError(DAMAGED) from error
    return picture


class PngFacts(NamedTuple):
    """Size and color of a PNG file."""

    width: int
    height: int
    gray: bool

    def __str__(self) -> str:
        return f"{self.width}x{self.height} pixels in {'gray' if self.gray else 'color'}"


def describe_png(data: bytes, allows_transparency: bool) -> PngFacts | str:
    """Size and color of a PNG file, or why it cannot be used."""
    try:
        image = verify(data, ("PNG",))
    except PictureSizeError as error:
        return f"a file that {error}"
    except PictureDepthError:
        return WRONG_DEPTH
    except PictureError:
        return "not a PNG file, or a damaged one"
    # Pillow converts other bit depths; the 25th byte of every PNG file tells the original one.
    if data[24] != 8 or image.mode not in ("L", "LA", "RGB", "RGBA", "P"):
        return WRONG_DEPTH
    if not allows_transparency and (image.mode in ("LA", "RGBA") or "transparency" in image.info):
        return "a PNG file with transparency"
    return PngFacts(*image.size, gray=image.mode in ("L", "LA"))


def decode(
    data: bytes,
    formats: tuple[str, ...] = FORMATS,
    resized_to: tuple[int, int] | None = None,
    *,
    keep_alpha: bool = False,
) -> "Image":
    """The first picture in ``data``, in mode L if the file holds gray levels only by its kind or palette, else in RGB.

    It is upright, as the EXIF orientation says, and opaque: transparent parts show a white background. With
    ``keep_alpha`` it is in mode LA or RGBA instead. ``resized_to``
    is the width and height that it is resized to, bilinear, without keeping the aspect ratio; then the file's picture
    may have up to `MAX_RESIZED_SIDE` pixels a side instead of `MAX_SIDE`. Raises PictureError.
    """
    picture = _open(data, formats, MAX_SIDE if resized_to is None else MAX_RESIZED_SIDE)
    pillow = _pillow()
    try:
        if resized_to is not None and picture.format == "JPEG":
            # The decoder itself halves the picture while the size remains, in half of the time. Of 256 levels, pixels
            # differ by about one from those of the whole picture.
            picture.draft(None, (max(resized_to), max(resized_to)))
        picture.load()
        picture = _with_alpha(picture) if keep_alpha else _opaque(picture)
        if resized_to is not None and picture.size != resized_to:
            picture = picture.resize(resized_to, pillow.Resampling.BILINEAR)
    except MemoryError:
        raise
    except Exception as error:
        raise PictureError(DAMAGED) from error
    return picture


def _opaque(picture: "Image") -> "Image":
    """The loaded picture upright, over white, in mode L or RGB."""
    from PIL import ImageOps  # noqa: PLC0415  # the Python client imports this package without having Pillow

    ImageOps.exif_transpose(picture, in_place=True)
    is_gray = picture.mode in ("1", "L", "LA", "La") or _has_gray_palette(picture)
    if picture.has_transparency_data:
        background = _pillow().new("RGBA", picture.size, "white")
        background.alpha_composite(picture.convert("RGBA"))
        picture = background
    mode = "L" if is_gray else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _with_alpha(picture: "Image") -> "Image":
    """The loaded picture upright, in mode LA or RGBA."""
    from PIL import ImageOps  # noqa: PLC0415  # the Python client imports this package without having Pillow

    ImageOps.exif_transpose(picture, in_place=True)
    is_gray = picture.mode in ("1", "L", "LA", "La") or _has_gray_palette(picture)
    return picture.convert("RGBA").convert("LA" if is_gray else "RGBA")


def _has_gray_palette(picture: "Image") -> bool:
    """Whether all colors of the palette that the picture uses are gray."""
    if picture.mode not in ("P", "PA"):
        return False
    palette = picture.getpalette("RGB") or []
    histogram = picture.getchannel(0).histogram()
    return all(
        len(set(palette[3 * index : 3 * index + 3])) == 1 for index, count in enumerate(histogram) if count
    )


def _open(data: bytes, formats: tuple[str, ...], largest: int) -> "Image":
    """The picture, of which only the header has been read. Raises PictureError."""
    pillow = _pillow()
    try:
        picture: Image = pillow.open(io.BytesIO(data), formats=formats)
    except pillow.DecompressionBombError as error:
        raise PictureSizeError(
            f"has too many pixels; allowed: at most {largest} a side, and "
            f"{2 * pillow.MAX_IMAGE_PIXELS // 10**6} million in all"
        ) from error
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        allowed = ALLOWED if formats == FORMATS else " or ".join(formats)
        raise PictureError(f"is not a readable picture; allowed: {allowed}") from error
    tags: Any = getattr(picture, "tag_v2", {})
    tile = (tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0))
    for width, height in (picture.size, tile):
        if max(width, height) > largest:
            raise PictureSizeError(f"is {width}x{height}; allowed: at most {largest} pixels a side")
    if _is_deep(picture):
        raise PictureDepthError("has more than 8 bits a channel; convert it to 8 bits")
    return picture


def _is_deep(picture: Any) -> bool:
    """Whether the file has more than 8 bits a channel: its mode says so, or how it is to be decoded."""
    if picture.mode.startswith(("I", "F")):
        return True
    for tile in picture.tile:
        raw_mode, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name.startswith("ppm") and more and more[0] > 255:  # the highest value, scaled to 255
            return True
        # BMP has modes such as BGR;16, with 16 bits a pixel.
        if isinstance(raw_mode, str) and _SIXTEEN_BITS.search(raw_mode) and not raw_mode.startswith("BGR"):
            return True
    return False


@cache
def _pillow() -> Any:
    """Pillow's module, without its warnings: what they are about is accepted here, or an error."""
    import warnings  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415  # the Python client imports this package without having Pillow

    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image
