"""Interactive requests: a preview of a trigger, and the arms' predictions for one image."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from app.specs.attack import NoAttack
from app.specs.checks import find_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.pictures import PictureError, decode
from worker.lab.attacks import Attack, AttackLab, State, make_attack
from worker.lab.attacks.poisoning import choose_poisoned
from worker.lab.compute import choose_compute
from worker.lab.contracts import SpecError
from worker.lab.data.augment import resolve_augmentation
from worker.lab.data.datasets import Dataset, draw_subset, load_whole_dataset
from worker.lab.defenses import make_detector
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.evaluation import TestSet, predict_logits
from worker.lab.networks.loading import load_model
from worker.lab.training import Recipe

PREVIEW_IMAGES = 8


def preview(payload: dict[str, Any], data_dir: Path) -> bytes:
    """A PNG of clean, triggered and residual test images.

    ``payload``: ``{"dataset": ..., "attack": ..., "seed": 0}``. Raises LabError if there is no trigger to show.
    """
    from worker.lab import figures  # noqa: PLC0415  # matplotlib is slow to import

    spec = ExperimentSpec.model_validate(
        {"dataset": payload["dataset"], "attack": payload["attack"], "training": {"batch_size": 2}}
    )
    data = _load_checked(spec, data_dir, int(payload.get("seed", 0)))
    attack = make_attack(spec.attack, data.facts)
    if attack is None:
        raise SpecError(f"attack.name: {spec.attack.name!r} has no trigger to show")
    if not attack.has_trigger:
        raise SpecError(
            f"attack.name: {spec.attack.name!r} has no trigger to show: it changes no image at test time"
        )
    seed = int(payload.get("seed", 0))
    test = TestSet.make(data.test, attack, state_without_training(spec, data, attack, seed))
    assert test.triggered is not None
    assert test.targets is not None
    assert test.origin is not None
    some = torch.linspace(0, len(test.triggered) - 1, min(PREVIEW_IMAGES, len(test.triggered))).long()
    names = data.facts.class_names
    picture: bytes = figures.samples(
        test.clean.images[test.origin[some]].numpy(),
        test.triggered.images[some].numpy(),
        [names[i] for i in test.triggered.labels[some].tolist()],
        [names[i] for i in test.targets[some].tolist()],
        f"{spec.attack.name} on {spec.dataset.name}",
    )
    return picture


def predict(
    spec: ExperimentSpec,
    checkpoints: dict[str, bytes],
    *,
    data_dir: Path,
    index: int | None,
    image: bytes | None,
    triggered: bool,
    seed: int,
    trigger_state: bytes | None = None,
    detectors: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """The predictions of every arm's model for one image: test image ``index``, or an uploaded one.

    ``checkpoints`` maps arms to safetensors files; ``trigger_state`` is the artifact ``seed-<s>/trigger.safetensors``,
    needed for ``triggered`` where the attack trained its trigger; ``detectors`` maps arms with an input detection to
    their artifacts ``detector.safetensors``. Returns ``image`` (index, label, label_name; None for an upload), ``arms``
    with class, class name, probabilities and for the arms in ``detectors`` the verdict (`judge_input`), and
    ``picture``, the image as the models saw it (PNG, base64).
    Raises LabError if the index or the image is not valid.
    """
    data = _load_checked(spec, data_dir, seed)
    label: int | None = None
    if image is not None:
        pixels = decode_image(image, data.facts)
    else:
        if index is None or not 0 <= index < len(data.test):
            raise SpecError(
                f"index: {index} is not allowed; the test set has images 0 to {len(data.test) - 1}"
            )
        pixels, label = data.test.images[index : index + 1], int(data.test.labels[index])
    if triggered:
        attack = make_attack(spec.attack, data.facts)
        if isinstance(spec.attack, NoAttack):
            raise SpecError("triggered: true is not allowed; this experiment has no attack")
        if attack is None or not attack.has_trigger:
            raise SpecError(f"triggered: true is not allowed; {spec.attack.name!r} has no trigger")
        state = load(trigger_state) if trigger_state else state_without_training(spec, data, attack, seed)
        pixels = attack.trigger(state)(pixels)
    compute = choose_compute("cpu", "float32", compile=False)
    arms = []
    for arm, checkpoint in checkpoints.items():
        network = load_model(spec.model, data.facts, load(checkpoint))
        probabilities = predict_logits(network, pixels, compute).softmax(1)[0]
        best = int(probabilities.argmax())
        answer: dict[str, Any] = {
            "arm": arm,
            "class": best,
            "class_name": data.facts.class_names[best],
            "probabilities": [round(p, 6) for p in probabilities.tolist()],
        }
        if detectors and arm in detectors:
            defense = next(defense for defense in spec.defenses if defense.arm_name == arm)
            detector = make_detector(defense, network, compute, seed)
            answer["detection"] = judge_input(detector, pixels, load(detectors[arm]))
        arms.append(answer)
    name = None if label is None else data.facts.class_names[label]
    return {
        "image": {"index": index if image is None else None, "label": label, "label_name": name},
        "triggered": triggered,
        "arms": arms,
        "picture": base64.b64encode(encode_png(pixels[0])).decode(),
    }


def judge_input(detector: InputDetector[Any], pixels: Tensor, state: DetectorState) -> dict[str, Any]:
    """The verdict on one image, uint8 ``[1, C, H, W]``: its suspicion, the threshold, and whether it is flagged."""
    suspicion, threshold = detector.score(pixels, state).item(), state["threshold"].item()
    return {
        "suspicion": round(suspicion, 6),
        "threshold": round(threshold, 6),
        "flagged": suspicion >= threshold,
    }


def state_without_training(spec: ExperimentSpec, data: Dataset, attack: Attack[Any], seed: int) -> State:
    """The state of a trigger that needs no training. Raises SpecError if it needs training."""

    def no_training(*_: object) -> Any:
        raise SpecError("attack: this trigger must be trained, which an interactive request cannot do")

    lab = AttackLab(
        train=data.train,
        test=data.test,
        chosen=choose_poisoned(spec, data, seed),
        facts=data.facts,
        seed=seed,
        compute=choose_compute("cpu", "float32", compile=False),
        new_network=no_training,
        recipe=Recipe.of(
            spec.training, resolve_augmentation(spec.training.augmentation, spec.dataset, data.facts)
        ),
        stage=no_training,
        clean_accuracy=no_training,
        measure=no_training,
        measure_fully=no_training,
    )
    return attack.state_without_training(lab)


def decode_image(image: bytes, facts: DatasetFacts) -> Tensor:
    """An image file as uint8 ``[1, C, H, W]``, resized to the dataset's shape. Raises SpecError if unreadable."""
    try:
        picture = decode(image, resized_to=(facts.width, facts.height))
    except PictureError as error:
        raise SpecError(f"image: the file {error}") from error
    pixels = np.asarray(picture.convert("L" if facts.channels == 1 else "RGB"))
    array = pixels.reshape(facts.height, facts.width, facts.channels)
    return torch.from_numpy(array.transpose(2, 0, 1).copy()).unsqueeze(0)


def encode_png(pixels: Tensor) -> bytes:
    """uint8 ``[C, H, W]`` as PNG."""
    array = pixels.permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(out, "PNG")
    return out.getvalue()


def _load_checked(spec: ExperimentSpec, data_dir: Path, seed: int) -> Dataset:
    whole = load_whole_dataset(spec.dataset, data_dir)
    if problems := find_problems(spec, whole.facts):
        raise SpecError("; ".join(map(str, problems)))
    return draw_subset(whole, spec.dataset, seed)
