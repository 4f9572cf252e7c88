"""Pictures that somebody else made: foreign formats never reach their readers, damaged files give a plain sentence."""

import base64
import contextlib
import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from app.core.errors import InvalidError
from app.experiments.interactive.service import verify_image
from app.specs.attack import Blend
from app.specs.facts import BUILT_IN
from app.specs.pictures import PictureError, decode
from worker.lab.attacks.patterns import choose_pattern
from worker.lab.contracts import LabError
from worker.lab.data.importing import read_source
from worker.lab.interactive import decode_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
DIGITS = BUILT_IN["digits"]


def encoded(format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format)
    return out.getvalue()


def predicted(_folder: Path, data: bytes) -> None:
    decode_image(data, DIGITS)


def imported(folder: Path, data: bytes) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / name).write_bytes(data)
    read_source(folder / "pictures", test_fraction=0.5, split_seed=0, size=None)


def blended(_folder: Path, data: bytes) -> None:
    spec = Blend(pattern="png", pattern_png=base64.b64encode(data).decode())
    choose_pattern(spec, torch.empty(0, 1, 8, 8, dtype=torch.uint8), DIGITS)


DOORS = {"predict": predicted, "import": imported, "pattern": blended}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], None]:
    return lambda data: DOORS[request.param](tmp_path, data)


def refusal(door: Callable[[bytes], None], data: bytes) -> str:
    with pytest.raises(LabError) as caught:
        door(data)
    return str(caught.value)


def test_postscript_never_reaches_ghostscript(
    door: Callable[[bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, trace = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\necho $0 >> {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # found again, on this PATH
    assert "not a readable picture; allowed: PNG" in refusal(door, EPS)
    assert not trace.exists()
    with contextlib.suppress(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert trace.exists()  # without the list of formats it would have run


@pytest.mark.parametrize("format", ["AVIF", "ICO", "PCX", "SGI", "TGA", "JPEG2000"])
def test_formats_outside_the_list_are_refused(door: Callable[[bytes], None], format: str) -> None:
    assert "not a readable picture; allowed: PNG" in refusal(door, encoded(format))


def test_a_png_that_declares_more_than_it_may_is_refused_by_its_header(door: Callable[[bytes], None]) -> None:
    size = struct.pack(">4s2L5B", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = encoded("PNG")[:12] + size + struct.pack(">L", zlib.crc32(size)) + encoded("PNG")[33:]
    assert "has too many pixels; allowed: at most " in refusal(door, data)


def test_a_tile_larger_than_its_tiff_is_refused_by_the_header() -> None:
    """The decoder allocates a whole tile: 40,000 x 40,000 bytes for four pixels."""
    tags = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 8, 325: 12}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<L", 20) + bytes(12) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(PictureError, match="is 40000x40000; allowed: at most 4096 pixels a side"):
        decode(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_damage_gives_a_picture_or_a_plain_sentence(format: str) -> None:
    whole, chance = encoded(format), random.Random(0)
    assert decode(whole).size == (8, 8)
    sentences = set()
    for _ in range(300):
        data = bytearray(whole[: chance.choice([len(whole), chance.randrange(1, len(whole))])])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode(bytes(data), resized_to=(4, 4) if chance.random() < 0.5 else None)
        except PictureError as error:
            sentences.add(
                str(error).partition(" picture")[0].partition("; allowed")[0].lstrip("is0123456789x ")
            )
    assert sentences <= {"not a readable", "has too many pixels", ""}, sentences
    assert sentences


DEEP = {
    "16-bit gray PNG": (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, "PNG"),
    "float TIFF": (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "TIFF"),
    "32-bit TIFF": (np.arange(64, dtype=np.int32).reshape(8, 8), "TIFF"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(door: Callable[[bytes], None], name: str) -> None:
    """They were clipped to black and white."""
    pixels, format = DEEP[name]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    message = refusal(door, out.getvalue())
    # A pattern must be a PNG.
    assert "more than 8 bits a channel; convert it" in message or "allowed: PNG" in message
    with pytest.raises(InvalidError, match="image: the file has more than 8 bits a channel"):
        verify_image(out.getvalue(), 10_000)
