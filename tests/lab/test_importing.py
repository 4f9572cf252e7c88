"""`bdlab data import`: every supported source, and a clear error of one line for every fault."""

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from app.specs.facts import BUILT_IN
from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.importing import StoredDataset, import_dataset

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)  # N, H, W, C
LABELS = np.array([0, 1, 2] * 4)


def run(source: Path, home: Path, **options: Any) -> StoredDataset:
    defaults = {"key": None, "built_in": None, "test": None, "test_fraction": None}
    return import_dataset(
        source, home, **{**defaults, "split_seed": 0, "size": None, "replace": False, **options}
    )


def refused(source: Path, home: Path, **options: Any) -> str:
    """The error's message; also asserts that it is one line and that nothing was written."""
    with pytest.raises(LabError) as caught:
        run(source, home, **options)
    assert "\n" not in str(caught.value)
    assert not [path for path in home.rglob("*") if path.is_file()]
    return str(caught.value)


def npz(folder: Path, name: str = "toy.npz", **changes: Any) -> Path:
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:3], "y_test": LABELS[:3], **changes}
    np.savez(folder / name, **{name: array for name, array in arrays.items() if array is not None})
    return folder / name


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def pictures(prefix: str = "", images: np.ndarray = IMAGES) -> dict[str, bytes]:
    names = ["cat", "dog", "eel"]
    return {
        f"{prefix}{names[y]}/{i:02}.png": png(x) for i, (x, y) in enumerate(zip(images, LABELS, strict=False))
    }


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize(
    "layout",
    [
        IMAGES,
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES / 255.0,
        (IMAGES / 255.0).astype(np.float32).transpose(0, 3, 1, 2),
    ],
    ids=["NHWC", "NCHW", "float64", "float32 NCHW"],
)
def test_every_layout_of_arrays_gives_the_same_images(tmp_path: Path, home: Path, layout: np.ndarray) -> None:
    stored = run(npz(tmp_path, x_train=layout, x_test=layout[:3]), home)
    tensors, facts, sha256 = files.read(stored.path)
    np.testing.assert_array_equal(tensors["x_train"], IMAGES.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(tensors["y_train"], LABELS)
    assert stored.dataset == {"name": "imported", "key": "toy"}
    assert (facts.channels, facts.height, facts.width, facts.classes) == (3, 6, 5, 3)
    assert (facts.train_counts, facts.test_counts, facts.class_names) == (
        (4, 4, 4),
        (1, 1, 1),
        ("0", "1", "2"),
    )
    assert sha256 == files.digest(tensors) == stored.sha256


def test_gray_arrays_and_column_labels_and_names(tmp_path: Path, home: Path) -> None:
    gray = IMAGES[..., 0]
    source = npz(
        tmp_path, x_train=gray, x_test=gray[:3], y_train=LABELS[:, None], class_names=["a", "b", "c"]
    )
    tensors, facts, _ = files.read(run(source, home).path)
    assert tensors["x_train"].shape == (12, 1, 6, 5)
    assert tensors["x_train"].dtype == np.uint8
    assert tensors["y_train"].dtype == np.int64
    assert facts.class_names == ("a", "b", "c")


NAN = np.where(np.arange(12)[:, None, None, None] == 7, np.nan, IMAGES / 255.0)
RAGGED = np.empty(12, object)
RAGGED[:] = [IMAGES[i, : 3 + i % 2] for i in range(12)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": None}, ["no array x_train", "it has y_train"]),
        ({"y_test": None}, ["no array y_test"]),
        ({"x_test": None, "y_test": None}, ["no test images", "--test-fraction"]),
        ({"x_train": NAN}, ["x_train", "image 7", "NaN"]),
        ({"x_train": IMAGES.astype(float)}, ["x_train", "[0, 1]", "255"]),
        ({"x_train": IMAGES.astype(np.int32)}, ["x_train", "int32", "uint8"]),
        ({"x_train": RAGGED}, ["x_train", "different sizes"]),
        ({"x_train": IMAGES[:, :, :, :2]}, ["x_train", "[12, 6, 5, 2]", "1 nor 3 channels"]),
        ({"x_train": IMAGES[:, :3]}, ["x_train", "ambiguous"]),
        ({"x_train": IMAGES[0, 0]}, ["x_train", "[5, 3]"]),
        ({"x_train": IMAGES[:0]}, ["x_train", "N > 0"]),
        ({"x_test": IMAGES[:3, :5]}, ["x_test", "3x5x5", "3x6x5"]),
        ({"y_train": LABELS[:-1]}, ["y_train", "11 labels", "12 images"]),
        ({"y_train": LABELS.astype(float)}, ["y_train", "float64", "integers"]),
        ({"y_train": LABELS - 1}, ["y_train", "-1"]),
        ({"y_train": LABELS * 10**12}, ["2000000000000", "out of range"]),
        ({"y_train": LABELS * 2, "y_test": LABELS[:3] * 2}, ["y_train", "class 1", "no images"]),
        ({"y_test": LABELS[:3] * 0}, ["y_test", "class 1", "no images"]),
        ({"y_train": LABELS * 0, "y_test": LABELS[:3] * 0}, ["two classes"]),
        ({"y_train": LABELS[None].repeat(2, 0)}, ["y_train", "[2, 12]"]),
        ({"class_names": ["a", "b"]}, ["label 2", "2 classes are named"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_arrays_are_refused(
    tmp_path: Path, home: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refused(npz(tmp_path, **changes), home)
    assert all(word in message for word in words), message


def test_damaged_archives_and_other_formats_are_refused(tmp_path: Path, home: Path) -> None:
    whole = npz(tmp_path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "not an .npz" in refused(tmp_path / "cut.npz", home)
    (tmp_path / "flipped.npz").write_bytes(whole.replace(IMAGES.tobytes()[:64], bytes(64), 1))
    assert "x_train" in refused(tmp_path / "flipped.npz", home)
    make_zip(tmp_path / "text.npz", {"x_train": b"hello", "y_train": b"hello"})
    assert "not a NumPy array" in refused(tmp_path / "text.npz", home)
    huge = (
        b"\x93NUMPY\x01\x00v\x00"
        + str({"descr": "|u1", "fortran_order": False, "shape": (10**15,)}).ljust(117).encode()
    )
    make_zip(tmp_path / "huge.npz", {"x_train.npy": huge + b"\n", "y_train.npy": huge + b"\n"})
    assert "x_train" in refused(tmp_path / "huge.npz", home)


def test_test_fraction_is_stratified_and_seeded(tmp_path: Path, home: Path) -> None:
    source = npz(tmp_path, x_test=None, y_test=None)
    first = run(source, home, test_fraction=0.25)
    assert first.facts.train_counts == (3, 3, 3)
    assert first.facts.test_counts == (1, 1, 1)
    assert run(source, home, test_fraction=0.25).sha256 == first.sha256
    other = run(source, home, test_fraction=0.25, split_seed=1, key="other")
    assert other.sha256 != first.sha256
    tensors, _, _ = files.read(first.path)
    rows = {image.tobytes() for name in ("x_train", "x_test") for image in tensors[name]}
    assert rows == {image.tobytes() for image in IMAGES.transpose(0, 3, 1, 2)}  # nothing lost or twice


def test_unneeded_or_invalid_test_fraction_is_refused(tmp_path: Path, home: Path) -> None:
    assert "1.5" in refused(npz(tmp_path), home, test_fraction=1.5)
    assert "has test images" in refused(npz(tmp_path), home, test_fraction=0.5)
    lonely = npz(tmp_path, x_test=None, y_test=None, y_train=np.array([0] * 11 + [1]))
    assert "at least 2" in refused(lonely, home, test_fraction=0.5)


@pytest.mark.parametrize("make", [make_zip, make_folder], ids=["zip", "folder"])
@pytest.mark.parametrize("wrapper", ["", "my-data/"])
def test_pictures_by_class(tmp_path: Path, home: Path, make: Any, wrapper: str) -> None:
    members = {
        **pictures(f"{wrapper}train/"),
        **pictures(f"{wrapper}test/", IMAGES[:3]),
        f"{wrapper}README.txt": b"read me",
        f"{wrapper}train/cat/.DS_Store": b"litter",
        "__MACOSX/train/cat/0.png": b"litter",
    }
    stored = run(make(tmp_path / "pets.zip", members), home)
    tensors, facts, _ = files.read(stored.path)
    assert facts.class_names == ("cat", "dog", "eel")
    assert (facts.train_counts, facts.test_counts) == ((4, 4, 4), (1, 1, 1))
    np.testing.assert_array_equal(
        tensors["x_train"][tensors["y_train"] == 1], IMAGES.transpose(0, 3, 1, 2)[LABELS == 1]
    )


def test_pictures_without_split_of_gray_numbered_classes_resized(tmp_path: Path, home: Path) -> None:
    members = {f"{label}/{i}.png": png(IMAGES[i, :, :, 0]) for label in (2, 10, 1) for i in range(4)}
    stored = run(make_folder(tmp_path / "numbers", members), home, test_fraction=0.25, size=8)
    assert stored.facts.class_names == ("1", "2", "10")
    assert (stored.facts.channels, stored.facts.height, stored.facts.width) == (1, 8, 8)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"cat/bad.png": b"no image"}, ["cat/bad.png", "not a readable picture"]),
        ({"cat/bad.png": png(IMAGES[0])[:60]}, ["cat/bad.png", "not a readable picture"]),
        ({"cat/bad.png": png(IMAGES[0, :4])}, ["cat/bad.png", "5x4", "--size"]),
        ({"cat/bad.png": png(IMAGES[0, :, :, 0].astype(np.uint16))}, ["cat/bad.png", "8 bits"]),
        ({"cat/photo.HEIC": b"x"}, ["cat/photo.HEIC", "allowed are .bmp"]),
        ({"top.png": png(IMAGES[0])}, ["top.png", "class's folder"]),
        ({"cat/deep/0.png": png(IMAGES[0])}, ["cat/deep/0.png", "class's folder"]),
        ({"../evil.png": png(IMAGES[0])}, ["../evil.png", "not a plain relative path"]),
        ({"/etc/evil.png": png(IMAGES[0])}, ["/etc/evil.png", "not a plain relative path"]),
        ({"cat\\..\\evil.png": png(IMAGES[0])}, ["evil.png", "not a plain relative path"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_pictures_are_refused(
    tmp_path: Path, home: Path, members: dict[str, bytes], words: list[str]
) -> None:
    message = refused(make_zip(tmp_path / "pets.zip", {**pictures(), **members}), home, test_fraction=0.25)
    assert all(word in message for word in words), message


def test_dangerous_zips_are_refused(tmp_path: Path, home: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", bytes(65 * 2**20))
    assert "too large" in refused(bomb, home)
    link = tmp_path / "link.zip"
    with zipfile.ZipFile(link, "w") as archive:
        info = zipfile.ZipInfo("cat/0.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "link" in refused(link, home)
    wide = make_zip(tmp_path / "wide.zip", {"cat/0.png": png(np.zeros((1, 5000), np.uint8))})
    assert "4096" in refused(wide, home)
    (tmp_path / "no.zip").write_bytes(b"PK")
    assert "not a readable zip" in refused(tmp_path / "no.zip", home)
    assert "no images" in refused(make_zip(tmp_path / "empty.zip", {}), home)


def parquet(path: Path, images: np.ndarray, labels: np.ndarray, **shape: Any) -> Path:
    data = [png(image) for image in images]
    column = data if shape.get("raw") else [{"bytes": item, "path": None} for item in data]
    table = pa.table({shape.get("image", "image"): column, shape.get("label", "label"): labels})
    if "names" in shape:
        features = {"label": {"names": shape["names"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_parquet_file_pair_and_folder_agree(tmp_path: Path, home: Path) -> None:
    train = parquet(
        tmp_path / "hf/data/train-00000-of-00001.parquet", IMAGES, LABELS, names=["cat", "dog", "eel"]
    )
    test = parquet(tmp_path / "hf/data/test-00000-of-00001.parquet", IMAGES[:3], LABELS[:3])
    folder = run(tmp_path / "hf", home)
    assert folder.facts.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(files.read(folder.path)[0]["x_train"], IMAGES.transpose(0, 3, 1, 2))
    assert run(train, home, test=test, key="pair").sha256 == folder.sha256
    raw = parquet(tmp_path / "raw.parquet", IMAGES, LABELS, raw=True, image="img", label="labels")
    assert run(raw, home, test_fraction=0.25).facts.test_counts == (1, 1, 1)


def test_bad_parquet_is_refused(tmp_path: Path, home: Path) -> None:
    odd = parquet(tmp_path / "odd.parquet", IMAGES, LABELS, label="class")
    assert "label or labels" in refused(odd, home, test_fraction=0.25)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 not really PAR1")
    assert "not readable parquet" in refused(tmp_path / "no.parquet", home)
    paths = pa.table({"image": [{"bytes": None, "path": "a.png"}], "label": [0]})
    pq.write_table(paths, tmp_path / "paths.parquet")
    assert "no image bytes" in refused(tmp_path / "paths.parquet", home)
    words = parquet(tmp_path / "words.parquet", IMAGES, np.array(["a", "b", "c"] * 4))
    assert "integers" in refused(words, home, test_fraction=0.25)


def test_names(tmp_path: Path, home: Path) -> None:
    assert "needs no import" in refused(npz(tmp_path), home, key="digits")
    assert "Bad Key" in refused(npz(tmp_path), home, key="Bad Key")
    assert "../x" in refused(npz(tmp_path), home, key="../x")
    assert "not cifar10" in refused(npz(tmp_path, "cifar10.npz"), home)
    assert "not gtsrb" in refused(npz(tmp_path), home, built_in="gtsrb")
    assert "no such file" in refused(tmp_path / "none.npz", home)
    (tmp_path / "a.txt").write_text("x")
    assert "allowed are .npz" in refused(tmp_path / "a.txt", home)
    assert run(npz(tmp_path, "My Set (1).npz"), home).dataset["key"] == "my-set-1"


def test_a_different_dataset_of_the_same_name_requires_replace(tmp_path: Path, home: Path) -> None:
    first = run(npz(tmp_path), home)
    before = first.path.stat().st_mtime_ns
    assert run(npz(tmp_path), home) == first
    changed = npz(tmp_path, x_train=255 - IMAGES)
    with pytest.raises(LabError, match="--replace"):
        run(changed, home)
    assert first.path.stat().st_mtime_ns == before
    assert run(changed, home, replace=True).sha256 != first.sha256
    assert os.listdir(first.path.parent) == ["toy.safetensors"]


def test_a_source_with_the_built_in_shape_is_stored_as_built_in(tmp_path: Path, home: Path) -> None:
    facts = BUILT_IN["cifar10"]
    y_train, y_test = (np.repeat(np.arange(10), counts) for counts in (facts.train_counts, facts.test_counts))
    blank = np.zeros((60_000, 32, 32, 3), np.uint8)
    source = npz(
        tmp_path, "cifar10.npz", x_train=blank[:50_000], y_train=y_train, x_test=blank[50_000:], y_test=y_test
    )
    stored = run(source, home)
    assert stored.dataset == {"name": "cifar10"}
    assert stored.path == home / "cifar10.safetensors"
    assert stored.facts == facts


def test_the_command_reports_in_json_and_lists_datasets(tmp_path: Path, home: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "worker.lab.data", *words, "--data-dir", str(home)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = command("import", str(npz(tmp_path)), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"] == {"name": "imported", "key": "toy"}
    listed = json.loads(command("list", "--json").stdout)
    assert [entry["dataset"].get("key") for entry in listed] == ["toy"]
    extra = command("import", str(npz(tmp_path, "extra.npz", more=LABELS)))
    assert extra.stderr == "bdlab: note: the arrays more are not used\n"
    bad = command("import", str(tmp_path / "none.npz"))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"bdlab: no such file or folder: {tmp_path / 'none.npz'}\n"


def test_a_file_of_another_writer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(LabError, match="bdlab data import"):
        files.read(tmp_path / "x.safetensors")
