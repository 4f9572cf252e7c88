"""Malicious data files: each is refused with the reason, in little memory."""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

LIMIT, GROWTH = 64 * 2**20, 160 * 2**20
READ = """
import json, sys
from pathlib import Path
from worker.lab.contracts import LabError
from worker.lab.data.importing import read_source
import pyarrow.parquet  # loaded before, so that only what the file costs is measured

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

before, said = peak(), {}
for path in map(Path, sys.argv[2:]):
    try:
        read_source(path, test_fraction=0.5, split_seed=0, size=None, most_bytes=int(sys.argv[1]))
        said[path.name] = ""
    except LabError as error:
        said[path.name] = str(error)
print(json.dumps([peak() - before, said]))
"""


def npy_header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def zip_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x_train.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))


def header_that_declares_more(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", npy_header((10**6, 32, 32, 3)) + bytes(100))
        archive.writestr("y_train.npy", npy_header((2,)) + bytes(2))


def member_that_declares_less(path: Path) -> None:
    size = 200 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(size))
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", size), struct.pack("<L", 1000)))


def huge_table_of_contents(path: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, *[0] * 8, 1, *[0] * 6) + b"a"
    size = len(entry) * (70 * 2**20 // len(entry))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, size, 0, 0)
    path.write_bytes(entry * (size // len(entry)) + end)


def one_image_in_every_row(path: Path) -> None:
    pictures = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([bytes(8 * 2**20)]))
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 1000}), path)


def huge_image(path: Path) -> None:
    """A PNG that says it is 5,000 pixels wide."""
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")
    size = struct.pack(">4s2L5B", b"IHDR", 5000, 5000, 8, 0, 0, 0, 0)
    png = out.getvalue()[:12] + size + struct.pack(">L", zlib.crc32(size)) + out.getvalue()[33:]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", png)


def path_outside_the_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../a/1.png", b"x")


def program_in_an_image(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nquit\n")


def rows_that_do_not_exist(path: Path) -> None:
    """A parquet whose footer declares a million rows; the number is stored as a variable-length integer."""
    pq.write_table(pa.table({"image": [b"x"] * 1000, "label": [0, 1] * 500}), path)
    raw = path.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    claimed = raw[footer:].replace(b"\xd0\x0f", b"\xd0\x1f")  # zigzag 1000 becomes 2024
    path.write_bytes(raw[:footer] + claimed)


FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("bomb.npz", zip_bomb, "unpacks to 300.0 MiB; at most 64.0"),
    ("claim.npz", header_that_declares_more, "the header declares 3072000000 bytes, but the archive has 100"),
    ("less.zip", member_that_declares_less, "Bad CRC-32"),
    ("contents.zip", huge_table_of_contents, "the table of contents has 69 MiB"),
    ("contents.npz", huge_table_of_contents, "the table of contents has 69 MiB"),
    ("shared.parquet", one_image_in_every_row, "not a readable picture"),
    ("huge.zip", huge_image, "5000x5000; allowed: at most 4096"),
    ("path.zip", path_outside_the_archive, "not a plain relative path"),
    ("program.zip", program_in_an_image, "is not a readable picture; allowed: PNG, JPEG, WebP,"),
    ("rows.parquet", rows_that_do_not_exist, ""),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, str]]:
    """Growth of the reader's memory in bytes, and its error for each file."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, make, _ in FILES:
        make(folder / name)
    paths = [str(folder / name) for name, _, _ in FILES]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(LIMIT), *paths],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    growth, said = json.loads(done.stdout)
    return growth, said


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, _, reason in FILES])
def test_each_is_refused_with_the_reason(outcome: tuple[int, dict[str, str]], name: str, reason: str) -> None:
    said = outcome[1][name]
    assert said
    assert reason in said


def test_memory_does_not_grow(outcome: tuple[int, dict[str, str]]) -> None:
    assert outcome[0] < GROWTH
