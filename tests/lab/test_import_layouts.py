"""Datasets as people have them: layouts, names, colors and leftovers, with the right content or one clear error."""

import io
import json
import os
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import BDLAB
from tests.lab.test_importing import (
    IMAGES,
    LABELS,
    make_folder,
    make_zip,
    npz,
    pictures,
    png,
    refused,
    run,
)
from worker.lab.data import files
from worker.lab.data.importing import StoredDataset
from worker.lab.data.readers import decoding
from worker.lab.interactive import decode_image


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"val_0.png\n", "there is no such image, or no such class in train"),
        (b"val_0.png\tn99\n", "there is no such image, or no such class in train"),
        (b"\xff\xfe\t\n", "val/val_annotations.txt is not UTF-8"),
    ],
)
def test_a_table_of_tiny_imagenet_that_cannot_be_read(tmp_path: Path, table: bytes, said: str) -> None:
    members = {"train/n01/images/a.png": DARK, "train/n02/images/b.png": BRIGHT, "val/images/val_0.png": DARK}
    made = make_folder(tmp_path / "tiny", members | {"val/val_annotations.txt": table})
    assert said in refused(made, tmp_path / "home")
    empty = make_folder(tmp_path / "empty", {"val/images/a.png": DARK, "val/val_annotations.txt": table})
    assert "no images in train/CLASS/images" in refused(empty, tmp_path / "home")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


DARK, BRIGHT = (png(np.full((6, 5, 3), level, np.uint8)) for level in (20, 220))
TEST = pictures("test/", IMAGES[:3])


def tensors(stored: StoredDataset) -> dict[str, Any]:
    return files.read(stored.path)[0]


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def table(names: list[str] | None, labels: list[int] | None = None) -> bytes:
    """Three dark cats and three bright dogs by turns, with labels in the order of ``names``."""
    order = names or ["cat", "dog"]
    rows = pa.table(
        {
            "image": [{"bytes": data, "path": None} for data in (DARK, BRIGHT) * 3],
            "label": labels or [order.index(name) for name in ("cat", "dog")] * 3,
        }
    )
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        rows = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out = io.BytesIO()
    pq.write_table(rows, out)
    return out.getvalue()


def levels(stored: StoredDataset, part: str = "test") -> dict[str, set[int]]:
    """The gray levels of the images of each class."""
    arrays = tensors(stored)
    return {
        name: set(np.unique(arrays[f"x_{part}"][arrays[f"y_{part}"] == label]).tolist())
        for label, name in enumerate(stored.facts.class_names)
    }


MAKERS = pytest.mark.parametrize("make", [make_zip, make_folder], ids=["zip", "folder"])


@MAKERS
@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_the_validation_part_serves_as_the_test_part(
    tmp_path: Path, home: Path, make: Any, name: str
) -> None:
    members = {**pictures("pets/train/"), **pictures(f"pets/{name}/", IMAGES[:3])}
    stored = run(make(tmp_path / "pets.zip", members), home)
    assert (stored.facts.train_counts, stored.facts.test_counts) == ((4, 4, 4), (1, 1, 1))
    assert stored.notes == ()


def test_a_validation_part_beside_a_test_part_is_mentioned(tmp_path: Path, home: Path) -> None:
    members = {**pictures("train/"), **TEST, **pictures("val/")}
    stored = run(make_folder(tmp_path / "pets", members), home)
    assert stored.facts.test_counts == (1, 1, 1)
    assert stored.notes == ("12 images for validation are not used, because there is a test part",)


def test_a_folder_beside_the_parts_is_refused_by_name(tmp_path: Path, home: Path) -> None:
    members = {**pictures("train/"), **TEST, "extra/cat/0.png": png(IMAGES[0])}
    assert "extra/cat/0.png is not in a class's folder" in refused(
        make_zip(tmp_path / "p.zip", members), home
    )


@MAKERS
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("train.parquet", "validation.parquet"),
        ("data/train-00000-of-00001.parquet", "data/valid-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
    ],
)
def test_layouts_of_the_hub(tmp_path: Path, home: Path, make: Any, train: str, test: str) -> None:
    """The test file names the classes in another order; its labels are mapped by name."""
    members = {train: table(["cat", "dog"]), test: table(["dog", "cat"]), "README.md": b"# Pets"}
    stored = run(make(tmp_path / "pets.zip", members), home)
    assert stored.facts.class_names == ("cat", "dog")
    assert levels(stored, "train") == levels(stored) == {"cat": {20}, "dog": {220}}
    assert stored.notes == ("skipped 1 files that are not parquet, such as README.md",)


def test_shards_and_pairs_are_mapped_by_name(tmp_path: Path, home: Path) -> None:
    shards = {"train-0.parquet": table(["cat", "dog"]), "train-1.parquet": table(["dog", "cat"])}
    make_folder(tmp_path / "pets", {**shards, "test.parquet": table(None)})
    stored = run(tmp_path / "pets", home)
    assert (stored.facts.train_counts, levels(stored, "train")) == ((6, 6), {"cat": {20}, "dog": {220}})
    test = tmp_path / "pets/train-1.parquet"
    assert levels(run(tmp_path / "pets/train-0.parquet", home, test=test, key="pair"))["cat"] == {20}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            {"train.parquet": table(["cat", "dog"]), "test.parquet": table(["cat", "eel"], [0, 1] * 3)},
            ["test.parquet has the classes cat, eel", "train.parquet has the classes cat, dog"],
        ),
        (
            {"train.parquet": table(["cat", "dog"]), "test.parquet": table(["cat", "dog"], [-1] * 6)},
            ["test.parquet row 0", "label -1", "without a label"],
        ),
        (
            {"train.parquet": table(["cat", "dog"]), "test.parquet": table(["dog", "cat"], [0, 1, 2] * 2)},
            ["test.parquet row 2", "label 2", "0 to 1"],
        ),
        (
            {"a/train-0.parquet": table(None), "b/train-0.parquet": table(None)},
            ["a/train-0.parquet", "b/train-0.parquet", "different datasets"],
        ),
        ({"test.parquet": table(None)}, ["for test", "none for train"]),
    ],
    ids=["other classes", "unlabeled", "out of range", "two datasets", "no train"],
)
def test_parquet_files_that_do_not_belong_together(
    tmp_path: Path, home: Path, members: dict[str, bytes], words: list[str]
) -> None:
    message = refused(make_zip(tmp_path / "pets.zip", members), home)
    assert all(word in message for word in words), message


def test_photos_are_turned_upright(tmp_path: Path, home: Path) -> None:
    """As a camera that was held upright stores them: turned, with a tag that says so."""
    scene = np.zeros((16, 8, 3), np.uint8)
    scene[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(
        Image.fromarray(scene).transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif
    )
    straight = encoded(Image.fromarray(scene), "JPEG", quality=95)
    members = {f"{c}/{i}.jpg": data for c in ("cat", "dog") for i, data in enumerate((turned, straight))}
    stored = run(make_zip(tmp_path / "photos.zip", members), home, test_fraction=0.5)
    assert (stored.facts.height, stored.facts.width) == (16, 8)
    arrays = tensors(stored)
    for x in (arrays["x_train"], arrays["x_test"]):
        assert x[:, :, :8].min() > 250
        assert x[:, :, 8:].max() < 5
    predicted = decode_image(turned, stored.facts).numpy()[0]
    assert predicted[:, :8].min() > 250
    assert predicted[:, 8:].max() < 5


@MAKERS
def test_a_class_without_pictures_is_refused_by_name(tmp_path: Path, home: Path, make: Any) -> None:
    members = {**pictures("train/"), **TEST, "train/ant/.DS_Store": b"x", "train/ant/notes.txt": b"x"}
    assert "train/ant has no images" in refused(make(tmp_path / "pets.zip", members), home)
    make_folder(tmp_path / "empty", pictures())
    (tmp_path / "empty/ant").mkdir()
    assert "ant has no images" in refused(tmp_path / "empty", home, test_fraction=0.25)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"class_names": np.array(["cat"]), "y_train": LABELS * 0, "y_test": LABELS[:3] * 0},
            ["cat is the only"],
        ),
        ({"y_train": np.array([2**64 - 1] * 12, "u8")}, ["y_train", "18446744073709551615"]),
        ({"class_names": np.array(["cat", "cat", "dog"])}, ["'cat'", "differ"]),
        ({"class_names": np.array([b"cat", b"\xff", b"dog"])}, ["class_names", "UTF-8"]),
        ({"class_names": np.array([["cat", "dog", "eel"]])}, ["class_names", "[1, 3]"]),
        ({"class_names": np.array("cat")}, ["class_names", "[]"]),
        ({"class_names": np.array(["cat", "d\x1bog", "eel"])}, ["d\\x1bog", "printable"]),
    ],
    ids=["one class", "uint64", "twice", "not UTF-8", "2-D", "scalar", "control character"],
)
def test_labels_and_names_that_are_refused(
    tmp_path: Path, home: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refused(npz(tmp_path, **changes), home)
    assert all(word in message for word in words), message


def test_names_in_bytes_are_decoded_and_unused_arrays_mentioned(tmp_path: Path, home: Path) -> None:
    names = np.array([name.encode() for name in ("Kätzchen", "dog", "eel")])
    stored = run(npz(tmp_path, class_names=names, x_extra=IMAGES), home)
    assert stored.facts.class_names == ("Kätzchen", "dog", "eel")
    assert stored.notes == ("the arrays x_extra are not used",)


def test_names_in_zips(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in pictures().items():
            entry = zipfile.ZipInfo()
            entry.filename = name.replace("/", "\\")
            archive.writestr(entry, data)
    assert run(path, home, test_fraction=0.25).facts.class_names == ("cat", "dog", "eel")
    plain = make_zip(tmp_path / "plain.zip", {f"{c}/{i}.png": DARK for c in ("QQQ", "zzz") for i in (0, 1)})
    # Names in UTF-8 without the flag that says so, as macOS writes them.
    (tmp_path / "mac.zip").write_bytes(plain.read_bytes().replace(b"QQQ", "猫".encode()))
    assert run(tmp_path / "mac.zip", home, test_fraction=0.5).facts.class_names == ("zzz", "猫")
    (tmp_path / "gbk.zip").write_bytes(plain.read_bytes().replace(b"QQQ/", "狗狗".encode("gbk")[:3] + b"/"))
    for path in home.rglob("*.safetensors"):
        path.unlink()
    assert "not UTF-8" in refused(tmp_path / "gbk.zip", home, test_fraction=0.5)


@MAKERS
def test_leftovers_are_skipped_and_other_files_counted(tmp_path: Path, home: Path, make: Any) -> None:
    litter = (
        "thumbs.db",
        "Thumbs.db",
        "Desktop.ini",
        "ehthumbs.db",
        ".DS_Store",
        "@eaDir/00.png@SynoEAStream",
    )
    members = {**pictures("train/"), **TEST, **{f"train/cat/{name}": b"x" for name in litter}}
    members["train/cat/@eaDir/0.png"] = b"x"
    members["__MACOSX/train/cat/._00.png"] = b"x"
    assert run(make(tmp_path / "litter.zip", members), home).notes == ()
    members |= {"train/cat/labels.csv": b"x", "LICENSE": b"x"}
    stored = run(make(tmp_path / "more.zip", members), home)
    assert stored.facts.train_counts == (4, 4, 4)
    assert stored.notes == ("skipped 2 files that are not images, such as LICENSE",)
    only = make(tmp_path / "only.zip", {"train/cat/labels.csv": b"x"})
    for path in home.rglob("*.safetensors"):
        path.unlink()
    assert "no images" in refused(only, home)


def deep_color() -> bytes:
    """A PNG with 16 bits a channel in color, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0), zlib.compress(bytes(6 * (1 + 5 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_pnm() -> bytes:
    return b"P6 5 6 65535\n" + bytes(5 * 6 * 6)


@pytest.mark.parametrize("data", [deep_color(), deep_pnm()], ids=["PNG", "PPM"])
def test_more_than_8_bits_in_color_are_refused(tmp_path: Path, home: Path, data: bytes) -> None:
    source = make_zip(tmp_path / "deep.zip", {**pictures(), "cat/deep.png": data})
    assert "cat/deep.png has more than 8 bits a channel" in refused(source, home, test_fraction=0.25)


def test_transparent_parts_show_white(tmp_path: Path, home: Path) -> None:
    hidden = np.zeros((6, 5, 4), np.uint8)
    hidden[..., 0] = 255  # red, which must not appear
    hidden[:3, :, 3] = 255
    members = {f"{c}/{i}.png": png(hidden) for c in ("cat", "dog") for i in (0, 1)}
    x = tensors(run(make_zip(tmp_path / "holes.zip", members), home, test_fraction=0.5))["x_train"]
    assert (x[:, :, :3] == np.array([255, 0, 0])[:, None, None]).all()
    assert (x[:, :, 3:] == 255).all()


def test_a_gray_palette_is_gray(tmp_path: Path, home: Path) -> None:
    gray = IMAGES[..., 0]
    data = [encoded(Image.fromarray(image).convert("P")) for image in gray]
    members = {f"{c}/{i}.png": data[2 * i + k] for k, c in enumerate(("cat", "dog")) for i in range(4)}
    stored = run(make_zip(tmp_path / "palette.zip", members), home, test_fraction=0.25)
    arrays = tensors(stored)
    assert stored.facts.channels == 1
    kept = {image.tobytes() for part in ("train", "test") for image in arrays[f"x_{part}"]}
    assert kept == {image.tobytes() for image in gray[:8]}


def test_gray_and_color_together(tmp_path: Path, home: Path) -> None:
    gray = {name: png(np.full((6, 5), 7, np.uint8)) for name in pictures("train/")}
    mixed = {**gray, **TEST, "test/cat/gray.png": DARK}
    message = refused(make_zip(tmp_path / "mixed.zip", mixed), home)
    assert "test/cat/00.png is in color, but train/cat/00.png" in message
    # A gray picture among the training images of a color dataset, as ImageNet has them; a test part that is all gray.
    some = {**pictures("train/"), "train/cat/gray.png": png(np.full((6, 5), 7, np.uint8))}
    gray_test = {name: png(np.full((6, 5), 9, np.uint8)) for name in TEST}
    arrays = tensors(run(make_zip(tmp_path / "some.zip", {**some, **gray_test}), home))
    assert arrays["x_train"].shape == (13, 3, 6, 5)
    assert arrays["x_test"].shape == (3, 3, 6, 5)
    assert (arrays["x_test"] == 9).all()
    assert any((image == 7).all() for image in arrays["x_train"])


def test_large_pictures_are_resized(tmp_path: Path, home: Path) -> None:
    wide = encoded(Image.new("L", (5000, 10), 99), "PNG")
    photo = encoded(Image.new("RGB", (4500, 30), (200, 100, 50)), "JPEG")
    members = {f"{c}/{i}": data for c in ("cat", "dog") for i, data in (("0.png", wide), ("1.jpg", photo))}
    source = make_zip(tmp_path / "large.zip", members)
    assert "at most 4096 pixels a side; larger ones can be resized" in refused(
        source, home, test_fraction=0.5
    )
    stored = run(source, home, test_fraction=0.5, size=8)
    assert (stored.facts.channels, stored.facts.height, stored.facts.width) == (3, 8, 8)


def test_jpegs_reduced_by_their_decoder_look_the_same(tmp_path: Path, home: Path) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((480, 400), Image.Resampling.BICUBIC)
    members = {f"{c}/{i}.jpg": encoded(photo, "JPEG", quality=95) for c in ("cat", "dog") for i in (0, 1)}
    stored = run(make_zip(tmp_path / "photos.zip", members), home, test_fraction=0.5, size=64)
    expected = np.asarray(photo.resize((64, 64), Image.Resampling.BILINEAR), float).transpose(2, 0, 1)
    difference = np.abs(tensors(stored)["x_train"][0] - expected)
    assert difference.mean() < 2
    assert difference.max() < 16


def test_threads_keep_the_order(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 4)
    many = {f"{c}/{i:03}.png": png(np.full((4, 4), i, np.uint8)) for c in ("cat", "dog") for i in range(80)}
    source = make_zip(
        tmp_path / "many.zip",
        {**{f"train/{n}": d for n, d in many.items()}, **{f"test/{n}": d for n, d in many.items()}},
    )
    x = tensors(run(source, home))["x_train"]
    assert x[:, 0, 0, 0].tolist() == list(range(80)) * 2


def gbk_zip(path: Path) -> Path:
    """Two classes whose names are in GBK without the flag of UTF-8; the second byte of the last one is a backslash."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for i in range(12):
            archive.writestr(f"{('QA', 'QB')[i % 2]}/{i}.png", png(IMAGES[i]))
    encoded = data.getvalue().replace(b"QA/", "猫/".encode("gbk")).replace(b"QB/", "漒/".encode("gbk"))
    path.write_bytes(encoded)
    return path


def test_names_in_another_encoding_are_decoded_as_the_option_says(tmp_path: Path) -> None:
    source, home = gbk_zip(tmp_path / "gbk.zip"), tmp_path / "home"
    said = refused(source, home, test_fraction=0.5)
    assert said.startswith("--zip-encoding: required")
    assert "gbk (Chinese)" in said
    assert "漒".encode("gbk").endswith(b"\\")
    command = [
        "data",
        "import",
        str(source),
        "--name=gbk",
        "--test-fraction=0.5",
        "--zip-encoding=gbk",
        "--json",
    ]
    environment = {**os.environ, "BDLAB_DATA_DIR": str(home)}
    done = subprocess.run([BDLAB, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["facts"]["class_names"] == ["漒", "猫"]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("klingon", "--zip-encoding: 'klingon' is not allowed; the name of a text encoding"),
        ("base64", "--zip-encoding: 'base64' is not allowed"),
        ("utf-8", "--zip-encoding: the zip contains a name that is not utf-8, the bytes b'"),
        ("utf-16", "--zip-encoding: 'utf-16' is not allowed"),
    ],
)
def test_an_encoding_that_does_not_fit_is_refused(tmp_path: Path, encoding: str, said: str) -> None:
    source = gbk_zip(tmp_path / "gbk.zip")
    assert said in refused(source, tmp_path / "home", test_fraction=0.5, zip_encoding=encoding)


def test_the_encoding_is_only_for_a_zip(tmp_path: Path) -> None:
    assert "--zip-encoding: only for a zip" in refused(npz(tmp_path), tmp_path / "home", zip_encoding="gbk")
