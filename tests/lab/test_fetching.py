"""`bdlab data fetch`: tiny archives in the formats of the real ones, from a server on this machine."""

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.data import local_datasets
from app.data.catalog.service import catalog
from app.specs.dataset import FETCHED
from app.specs.experiment import ExperimentSpec
from app.specs.training import Augmentation
from tests.lab.test_import_layouts import encoded
from worker.lab.contracts import LabError
from worker.lab.data import datasets, fetching, files, importing
from worker.lab.data.augment import resolve_augmentation
from worker.lab.networks._torchvision import torchvision_models

RANDOM = np.random.default_rng(0)
Images = dict[str, np.ndarray]


class Server:
    """Serves the files of a folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def put(self, name: str, data: bytes) -> tuple[str, str]:
        """The file's URL and MD5."""
        (self.folder / name).write_bytes(data)
        return f"{self.url}/{name}", hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield Server(folder, f"http://127.0.0.1:{served.server_port}")
    served.shutdown()
    served.server_close()


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def drawn(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def cifar100(server: Server, patch: pytest.MonkeyPatch) -> Images:
    from torchvision.datasets import CIFAR100  # noqa: PLC0415

    arrays = {"train": drawn(4, 3, 32, 32), "test": drawn(2, 3, 32, 32)}
    parts = {
        name: pickle.dumps({"data": x.reshape(len(x), -1), "fine_labels": [i % 2 for i in range(len(x))]})
        for name, x in arrays.items()
    }
    meta = pickle.dumps({"fine_label_names": ["apple", "beaver"]})
    files = {**parts, "meta": meta}
    url, digest = server.put(
        "c.tar.gz", tar({f"cifar-100-python/{name}": data for name, data in files.items()})
    )
    patch.setattr(CIFAR100, "url", url)
    patch.setattr(CIFAR100, "tgz_md5", digest)
    patch.setattr(CIFAR100, "train_list", [["train", md5(parts["train"])]])
    patch.setattr(CIFAR100, "test_list", [["test", md5(parts["test"])]])
    patch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(meta)})
    return {"x_train": arrays["train"], "x_test": arrays["test"]}


def svhn(server: Server, patch: pytest.MonkeyPatch) -> Images:
    from scipy.io import savemat  # noqa: PLC0415
    from torchvision.datasets import SVHN  # noqa: PLC0415

    arrays, entries = {}, {}
    for part, count in (("train", 20), ("test", 10)):
        x, y, out = drawn(count, 3, 32, 32), np.arange(count) % 10, io.BytesIO()
        y[y == 0] = 10  # as the files have it
        savemat(out, {"X": x.transpose(2, 3, 1, 0), "y": y[:, None]})
        url, digest = server.put(f"{part}_32x32.mat", out.getvalue())
        arrays[f"x_{part}"], entries[part] = x, [url, f"{part}_32x32.mat", digest]
    patch.setattr(SVHN, "split_list", entries)
    return arrays


def idx(kind: str) -> Callable[[Server, pytest.MonkeyPatch], Images]:
    def make(server: Server, patch: pytest.MonkeyPatch) -> Images:
        from torchvision import datasets as tv  # noqa: PLC0415

        arrays, resources = {}, []
        for part, prefix, count in (("train", "train", 20), ("test", "t10k", 10)):
            x = drawn(count, 28, 28)
            arrays[f"x_{part}"] = x[:, None]
            y = (np.arange(count) % 10).astype(np.uint8)
            for name, array in ((f"{prefix}-images-idx3-ubyte.gz", x), (f"{prefix}-labels-idx1-ubyte.gz", y)):
                head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
                _, digest = server.put(name, gzip.compress(head + array.tobytes()))
                resources.append((name, digest))
        patch.setattr(getattr(tv, kind), "mirrors", [f"{server.url}/"])
        patch.setattr(getattr(tv, kind), "resources", resources)
        return arrays

    return make


def stl10(server: Server, patch: pytest.MonkeyPatch) -> Images:
    from torchvision.datasets import STL10  # noqa: PLC0415

    arrays, members = {}, {"class_names.txt": b"airplane\nbird\n", "fold_indices.txt": b"0 1\n" * 10}
    for part, count in (("train", 4), ("test", 2)):
        x = arrays[f"x_{part}"] = drawn(count, 3, 96, 96)
        members[f"{part}_X.bin"] = x.transpose(0, 1, 3, 2).tobytes()
        members[f"{part}_y.bin"] = bytes(1 + i % 2 for i in range(count))
    url, digest = server.put("stl10.tar.gz", tar({f"stl10_binary/{n}": data for n, data in members.items()}))
    patch.setattr(STL10, "url", url)
    patch.setattr(STL10, "filename", "stl10.tar.gz")
    patch.setattr(STL10, "tgz_md5", digest)
    for part in ("train", "test"):
        entries = [[name, md5(members[name])] for name in (f"{part}_X.bin", f"{part}_y.bin")]
        patch.setattr(STL10, f"{part}_list", entries)
    return arrays


def imagenette(server: Server, patch: pytest.MonkeyPatch) -> Images:
    from torchvision.datasets import Imagenette  # noqa: PLC0415

    ids = list(Imagenette._WNID_TO_CLASS)[:2]
    arrays, members = {}, {}
    for part, folder in (("train", "train"), ("test", "val")):
        levels = np.array([10, 200], np.uint8)
        arrays[f"x_{part}"] = np.broadcast_to(levels[:, None, None, None], (2, 3, 64, 64))
        for id, level in zip(ids, levels.tolist(), strict=True):
            photo = Image.new("RGB", (160, 200), (level,) * 3)
            members[f"imagenette2-160/{folder}/{id}/a.JPEG"] = encoded(photo, "JPEG", quality=95)
    patch.setattr(Imagenette, "_ARCHIVES", {"160px": server.put("imagenette2-160.tgz", tar(members))})
    return arrays


def tiny_imagenet(server: Server, patch: pytest.MonkeyPatch) -> Images:
    ids, levels = ["n01", "n02"], [30, 90]
    members = {f"train/{i}/images/{i}_{k}.JPEG": n for i, n in zip(ids, levels, strict=True) for k in (0, 1)}
    members |= {"val/images/val_0.JPEG": 90, "val/images/val_1.JPEG": 30, "test/images/test_0.JPEG": 1}
    texts = {
        "val/val_annotations.txt": "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n",
        "words.txt": "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\n",
        "train/n01/n01_boxes.txt": "x",
        "wnids.txt": "n02\nn01\n",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, level in members.items():
            gray = encoded(Image.new("RGB", (64, 64), (level,) * 3), "JPEG", quality=95)
            archive.writestr(f"tiny-imagenet-200/{name}", gray)
        for name, text in texts.items():
            archive.writestr(f"tiny-imagenet-200/{name}", text)
    patch.setattr(fetching, "TINY_IMAGENET", server.put("tiny-imagenet-200.zip", out.getvalue()))

    def filled(*numbers: int) -> np.ndarray:
        return np.broadcast_to(np.array(numbers, np.uint8)[:, None, None, None], (len(numbers), 3, 64, 64))

    return {"x_train": filled(30, 30, 90, 90), "x_test": filled(90, 30)}


MAKERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "cifar100": (cifar100, ("apple", "beaver")),
    "svhn": (svhn, tuple("0123456789")),
    "mnist": (idx("MNIST"), tuple("0123456789")),
    "fashion_mnist": (
        idx("FashionMNIST"),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "stl10": (stl10, ("airplane", "bird")),
    "imagenette": (imagenette, ("tench", "English springer")),
    "tiny_imagenet": (tiny_imagenet, ("goldfish", "crane")),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_dataset_is_fetched_and_used(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_models()
    make, names = MAKERS[name]
    expected = make(server, monkeypatch)
    home = tmp_path / "home"
    with pytest.raises(LabError, match=f"this is not {name}: "):
        fetching.fetch_dataset(name, home)
    shape, classes = "x".join(map(str, expected["x_train"].shape[1:])), len(names)
    assert importing.EXPECTED[name][0] == shape
    counts = (len(expected["x_train"]), len(expected["x_test"]))
    monkeypatch.setitem(importing.EXPECTED, name, (shape, classes, *counts))
    stored = fetching.fetch_dataset(name, home)
    assert (stored.dataset, stored.facts.class_names) == ({"name": name}, names)
    tensors = files.read(stored.path)[0]
    for part, images in expected.items():
        np.testing.assert_array_equal(tensors[part], images)
    spec = ExperimentSpec.model_validate({"dataset": stored.dataset}).dataset
    assert datasets.load_whole_dataset(spec, home).facts == stored.facts
    assert local_datasets.find_local(spec, home) == (stored.facts, stored.sha256)
    entry = next(entry for entry in catalog(home).datasets if entry.name == name)
    assert (entry.present, entry.facts) == (True, stored.facts)
    flip = resolve_augmentation(Augmentation(), spec, stored.facts).flip
    assert flip is (name not in ("svhn", "mnist"))


def test_a_server_that_does_not_have_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TINY_IMAGENET", (f"{server.url}/none.zip", "0" * 32))
    with pytest.raises(
        LabError, match=r"tiny_imagenet could not be downloaded .*data import tiny_imagenet\.npz"
    ):
        fetching.fetch_dataset("tiny_imagenet", tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_the_catalog_names_what_is_not_present(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in catalog(tmp_path).datasets}
    for name in FETCHED:
        assert (entries[name].present, entries[name].command) == (False, f"bdlab data fetch {name}")
    assert entries["cifar100"].facts is None
    with pytest.raises(local_datasets.MissingDatasetError, match="run `bdlab data fetch cifar100`"):
        local_datasets.find_local(
            ExperimentSpec.model_validate({"dataset": {"name": "cifar100"}}).dataset, tmp_path
        )
