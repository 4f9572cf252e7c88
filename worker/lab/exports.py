"""The poisoned set for other programs, with the triggered test images beside it.

- ``poisoned_train.npz`` and the parquet files: what `bdlab data import` reads, with the truth.
- ``backdoor_toolbox.zip``: the folders of github.com/vtu81/backdoor-toolbox at 9d4d909, which reads images as
  ``data/N.png`` (utils/tools.py, IMG_Dataset and unpack_poisoned_train_set) beside lists that torch saved.
- ``backdoorbench.zip``: the folders of github.com/SCLBD/BackdoorBench (utils/bd_dataset_v2.py,
  poisonedCLSDataContainer): the changed images only, by true class and index in the clean dataset.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.specs.experiment import ExperimentSpec
from worker.lab.attacks import PoisonedSet
from worker.lab.data.datasets import Dataset
from worker.lab.data.streamed import Images, stored
from worker.lab.evaluation import TestSet

Array = NDArray[Any]
Add = Callable[..., None]
"""Records a file: (name, kind, media type, data, labels)."""
POISONED = {"backdoored": True}
"""Label of data that puts a backdoor into a model; the service restricts who may download it."""


def record_exports(
    add: Add,
    log: Callable[[str], None],
    spec: ExperimentSpec,
    data: Dataset,
    poisoned: PoisonedSet,
    test: TestSet,
) -> None:
    """Record the poisoned training set, the clean test set and the triggered test images in every layout."""
    assert test.triggered is not None
    assert test.targets is not None
    arrays = {
        "x_train": _to_array(poisoned.images),
        "y_train": poisoned.labels.cpu().numpy(),
        "x_test": _to_array(data.test.images),
        "y_test": data.test.labels.cpu().numpy(),
    }
    truth = {
        name: flags.cpu().numpy()
        for name in ("is_poisoned", "is_cross", "clean_labels")
        if (flags := getattr(poisoned, name)) is not None
    }
    triggered = {
        "x_test_triggered": _to_array(test.triggered.images),
        "y_test_triggered": test.triggered.labels.cpu().numpy(),
        "y_test_target": test.targets.cpu().numpy(),
    }
    contents: dict[str, Any] = {
        **arrays,
        **truth,
        **triggered,
        "class_names": np.array(data.facts.class_names),
    }
    out = io.BytesIO()
    np.savez_compressed(out, **contents)
    add("poisoned_train.npz", "data", "application/zip", out.getvalue(), POISONED)
    del out
    pictures = {part: [_png(image) for image in arrays[f"x_{part}"]] for part in ("train", "test")}
    pictures["triggered"] = [_png(image) for image in triggered["x_test_triggered"]]
    _record_parquet(add, log, data.facts.class_names, pictures, arrays, truth)
    folders = _toolbox_files(spec, pictures, arrays, truth, triggered)
    add("backdoor_toolbox.zip", "data", "application/zip", _zip(folders), POISONED)
    if len(poisoned.labels) > len(data.train):
        log(
            "backdoorbench.zip is left out: BackdoorBench has no poisons beside the images that they were made from"
        )
        return
    files = _benchmark_files(spec, data, poisoned, test, pictures)
    add("backdoorbench.zip", "data", "application/zip", _zip(files), POISONED)


def _record_parquet(
    add: Add,
    log: Callable[[str], None],
    class_names: tuple[str, ...],
    pictures: dict[str, list[bytes]],
    arrays: dict[str, Array],
    truth: dict[str, Array],
) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415  # slow to import, and used only here
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        log("the parquet files of the poisoned set are left out: pyarrow is not installed")
        return
    features = {"label": {"names": list(class_names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, flags in (("train", truth), ("test", {})):
        columns = {
            "image": [{"bytes": picture, "path": None} for picture in pictures[part]],
            "label": arrays[f"y_{part}"],
            **flags,
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        out = io.BytesIO()
        pq.write_table(table, out)
        labels = POISONED if part == "train" else {}
        add(f"poisoned_{part}.parquet", "data", "application/vnd.apache.parquet", out.getvalue(), labels)


def _toolbox_files(
    spec: ExperimentSpec,
    pictures: dict[str, list[bytes]],
    arrays: dict[str, Array],
    truth: dict[str, Array],
    triggered: dict[str, Array],
) -> Iterable[tuple[str, bytes]]:
    """``labels`` of the triggered images are the targets, as the toolbox measures success; ``true_labels`` the others.

    The toolbox itself makes triggered images from clean ones, so their folder is laid out as its clean test set is.
    """
    name = f"{spec.dataset.name}/{spec.attack.name}_{truth['is_poisoned'].mean():.3f}"
    lists: dict[str, dict[str, Any]] = {
        f"poisoned_train_set/{name}": {
            "labels": torch.from_numpy(arrays["y_train"]),
            "poison_indices": np.flatnonzero(truth["is_poisoned"]).tolist(),
            "cover_indices": np.flatnonzero(truth["is_cross"]).tolist(),
        },
        f"clean_set/{spec.dataset.name}/test_split": {"labels": torch.from_numpy(arrays["y_test"])},
        f"triggered_test_set/{name}": {
            "labels": torch.from_numpy(triggered["y_test_target"]),
            "true_labels": torch.from_numpy(triggered["y_test_triggered"]),
        },
    }
    for (folder, saved), part in zip(lists.items(), ("train", "test", "triggered"), strict=True):
        for list_name, values in saved.items():
            yield f"{folder}/{list_name}", _torch_bytes(values)
        for i, picture in enumerate(pictures[part]):
            yield f"{folder}/data/{i}.png", picture


def _benchmark_files(
    spec: ExperimentSpec,
    data: Dataset,
    poisoned: PoisonedSet,
    test: TestSet,
    pictures: dict[str, list[bytes]],
) -> Iterable[tuple[str, bytes]]:
    """The pictures, and ``attack_result.pt`` with the states of both sets; a model is to be added to it.

    The poison indicator of a cross sample is 2: BackdoorBench reads every image from the folder whose indicator is
    not 0.
    """
    assert poisoned.is_poisoned is not None
    assert poisoned.clean_labels is not None
    assert test.triggered is not None
    assert test.targets is not None
    assert test.origin is not None
    result: dict[str, Any] = {
        "num_classes": data.facts.classes,
        "data_path": f"data/{spec.dataset.name}",
        "img_size": [data.facts.height, data.facts.width, data.facts.channels],
        "clean_data": spec.dataset.name,
    }
    sets = {
        "bd_train": (
            (poisoned.is_poisoned | poisoned.is_cross).nonzero().flatten(),
            poisoned.labels,
            poisoned.clean_labels,
            len(poisoned.labels),
            None,
        ),
        "bd_test": (test.origin, test.targets, test.triggered.labels, len(data.test), pictures["triggered"]),
    }
    for name, (index, labels, true, length, images) in sets.items():
        folder, entries, indicator = f"{name}_dataset", {}, np.zeros(length, np.int64)
        for position, row in enumerate(index.tolist()):
            # The training set has a label for each image, the triggered test set one for each triggered image.
            at = row if images is None else position
            label, original = int(labels[at]), int(true[at])
            path = f"{folder}/{original}/{row}.png"
            is_cross = name == "bd_train" and bool(poisoned.is_cross[row])
            indicator[row] = 2 if is_cross else 1
            entries[row] = {"path": path, "other_info": [label, original]}
            yield path, pictures["train"][row] if images is None else images[position]
        result[name] = {
            "bd_data_container": {
                "save_folder_path": folder,
                "data_dict": entries,
                "save_file_format": ".png",
            },
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(length) if name == "bd_train" else np.array(index.tolist()),
            "poison_indicator": indicator,
            "save_folder_path": folder,
        }
    yield "attack_result.pt", _torch_bytes(result)


def _zip(files: Iterable[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # not compressed: PNG files do not become smaller
        for name, data in files:
            # A fixed date, so that equal sets are equal files.
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def _torch_bytes(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _to_array(images: Images) -> Array:
    """uint8 ``[N, H, W, C]``, gray ones ``[N, H, W]``."""
    array: Array = stored(images).permute(0, 2, 3, 1).cpu().numpy()
    return array[..., 0] if array.shape[3] == 1 else array


def _png(image: Array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()
