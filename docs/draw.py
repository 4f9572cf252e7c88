"""Draw the figures of docs/attacks.md and docs/defenses/ by running the code: `make figures`.

Attacks run on 2,000 images of CIFAR-10 with `small_cnn` (those of `ON_DIGITS` on digits): enough to show a trigger, not
to measure it. Defenses run on digits against BadNets, seed 0. Ten minutes on one core; finished stages are cached under
var/, so a second run only draws.
"""

import argparse
import csv
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from app.data.catalog import service as catalog
from app.specs.experiment import UNDEFENDED, ExperimentSpec
from worker.lab.attacks import Attack, make_attack
from worker.lab.data.datasets import Dataset, load_dataset
from worker.lab.experiment import run_experiment
from worker.lab.figures.style import BAD, GOOD, INK, MUTED, new_figure, render_png
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
WORK = ROOT / "var" / "figures"
DATA = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))

SHOWN, SIDE, GAP, MARGIN, HEAD = 4, 96, 2, 92, 22  # images a row; the rest in pixels
STRENGTHENED = 5
COLUMNS = 4  # panels a row
CIFAR10 = {"name": "cifar10", "train_size": 2000, "test_size": 200}
ON_DIGITS = ("input_aware", "lira", "issba")  # their networks take long on CIFAR-10
ATTACKS = [name for name in catalog.names("attack") if name not in ("none", "given")]
SURROGATE = {"surrogate_epochs": 10}
CHANGED: dict[str, dict[str, Any]] = {
    "trojan": {**SURROGATE, "patch_steps": 300},
    "clean_label": SURROGATE,
    "hidden_trigger": {**SURROGATE, "craft_steps": 300},
    "poison_frogs": {**SURROGATE, "poisoning_rate": 0.1},
    "narcissus": {**SURROGATE, "pattern_steps": 300, "poisoning_rate": 0.01},
    "witches_brew": {**SURROGATE, "preset": "one_restart", "craft_steps": 100},
    "sleeper_agent": {**SURROGATE, "craft_retrainings": 1, "craft_steps": 100},
    "lira": {"epsilon": 32, "generator_epochs": 60},
    "issba": {
        "code_bits": 4,
        "image_weight": 3,
        "encoder_steps": 800,
        "encoder_batch": 32,
        "encoder_wait": 20,
        "encoder_ramp": 200,
    },
    "blind": {"joint_epochs": 1, "history_epochs": 0.5},
    "adversarial_embedding": {"joint_epochs": 1},
    "adaptive_blend": {"poisoning_rate": 0.01},
    "adaptive_patch": {"poisoning_rate": 0.01},
}
"""Fields that are not at their defaults, by attack."""
BY_KIND = {
    kind: [entry.name for entry in catalog.catalog(DATA).defenses if entry.kind == kind]
    for kind in ("training", "repair", "detection", "input_detection")
}
"""The names of the defenses."""
WITHOUT_SCORES = ("neural_cleanse",)
"""Detections that name classes instead of samples; no histogram is drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of the guides.")
    parser.add_argument(
        "what", nargs="*", help="names of attacks, `defenses`, or `detections`; default: everything"
    )
    asked = parser.parse_args().what or [*ATTACKS, "defenses", "detections"]
    torch.set_num_threads(1)
    for name in asked:
        {"defenses": draw_defenses, "detections": draw_detections}.get(name, partial(draw_attack, name))()
        print(name)


def draw_attack(name: str) -> None:
    """Test images with and without the trigger and, if poisoned images differ from triggered ones, these too."""
    spec = ExperimentSpec.model_validate(
        {
            "dataset": {"name": "digits"} if name in ON_DIGITS else CIFAR10,
            "attack": {"name": name, "export": True, **CHANGED.get(name, {})},
            "training": {"epochs": 1},
        }
    )
    folder = compute(spec, name)
    data = load_dataset(spec.dataset, DATA, 0)
    attack = make_attack(spec.attack, data.facts)
    assert attack is not None
    blocks = []
    if attack.has_trigger:
        blocks.append(("test images", *test_images(attack, data, folder)))
    original, poisoned = training_images(data, folder)
    if not blocks or not torch.equal(attack.trigger(trigger_state(attack, data, folder))(original), poisoned):
        blocks.append(("poisoned training images", original, poisoned))
    board(blocks).save(IMAGES / "attacks" / f"{name}.png", optimize=True)


def compute(spec: ExperimentSpec, name: str) -> Path:
    """Run the experiment unless its results exist; return the folder with its files."""
    folder = WORK / name
    done = folder / "done"
    if done.exists() and done.read_text() == spec.spec_hash:
        return folder
    recorder = FolderRecorder(folder)
    try:
        run_experiment(spec, recorder, FolderStore(WORK / "stages"), data_dir=DATA, device="cpu")
    finally:
        recorder.close()
    done.write_text(spec.spec_hash)
    return folder


def test_images(attack: Attack[Any], data: Dataset, folder: Path) -> tuple[Tensor, Tensor]:
    """uint8 ``[SHOWN, 3, 32, 32]`` each: without the trigger, and with it."""
    state = trigger_state(attack, data, folder)
    rows = attack.attacked(data.test, state)
    rows = rows[:: min(len(data.test) // (SHOWN + 1), len(rows) // SHOWN)][:SHOWN]
    images = data.test.images[rows]
    return images, attack.trigger(state)(images)


def trigger_state(attack: Attack[Any], data: Dataset, folder: Path) -> dict[str, Tensor]:
    """The stored state of the trigger, or its initial state if it requires no training."""
    from worker.lab.interactive import state_without_training  # noqa: PLC0415

    kept = folder / "seed-0" / "trigger.safetensors"
    if kept.exists():
        return load_file(kept)
    spec = ExperimentSpec.model_validate({"dataset": CIFAR10, "attack": attack.spec})
    return state_without_training(spec, data, attack, 0)


def training_images(data: Dataset, folder: Path) -> tuple[Tensor, Tensor]:
    """uint8 ``[SHOWN, C, H, W]`` each: original and poisoned training images."""
    with np.load(folder / "seed-0" / "poisoned_train.npz") as file:
        rows = torch.from_numpy(file["is_poisoned"]).nonzero().flatten()[:SHOWN]
        images = torch.from_numpy(file["x_train"])[rows]  # gray ones have no axis of channels
        poisoned = images.reshape(*images.shape[:3], data.facts.channels).permute(0, 3, 1, 2)
    return data.train.images[rows], poisoned


def board(blocks: list[tuple[str, Tensor, Tensor]]) -> Image.Image:
    """Draw the blocks (title, before, after) side by side, with the amplified difference around gray."""
    width = SHOWN * (SIDE + GAP) + 14
    whole = Image.new("RGB", (MARGIN + width * len(blocks) - 14, HEAD + 3 * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=13)
    for row, text in enumerate(("original", "attacked", f"difference x{STRENGTHENED}")):
        middle = HEAD + row * (SIDE + GAP) + SIDE // 2
        pen.text((MARGIN - 6, middle), text.replace(" x", "\nx"), INK, font, anchor="rm", align="right")
    for block, (title, before, after) in enumerate(blocks):
        left = MARGIN + block * width
        pen.text((left, HEAD // 2 - 1), title, INK, font, anchor="lm")
        difference = (128 + STRENGTHENED * (after.int() - before.int())).clamp(0, 255).to(torch.uint8)
        for row, images in enumerate((before, after, difference)):
            for column, image in enumerate(images):
                pixels = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
                tile = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                whole.paste(tile, (left + column * (SIDE + GAP), HEAD + row * (SIDE + GAP)))
    return whole


def draw_defenses() -> None:
    """Curves of training and repair defenses."""
    folder = compute_defenses("defenses", BY_KIND["training"] + BY_KIND["repair"])
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    arms = {arm["arm"]: arm["seeds"][0] for arm in json.loads((folder / "results.json").read_text())["arms"]}
    grid("training", BY_KIND["training"], partial(curves, points=points, before=None, arms=arms))
    grid("repair", BY_KIND["repair"], partial(curves, points=points, before=UNDEFENDED, arms=arms))


def draw_detections() -> None:
    """Histograms of suspicion of both kinds of detections."""
    folder = compute_defenses("detections", BY_KIND["detection"] + BY_KIND["input_detection"]) / "seed-0"
    for kind, file, truth in (
        ("detection", "detection.csv", "is_poisoned"),
        ("input_detection", "inputs.csv", "is_triggered"),
    ):
        names = [name for name in BY_KIND[kind] if name not in WITHOUT_SCORES]
        grid(kind, names, partial(histogram, folder=folder, file=file, truth=truth))


def compute_defenses(name: str, defenses: list[str]) -> Path:
    """Run ``defenses`` on digits; return the folder with their results."""
    return compute(ExperimentSpec.model_validate({"defenses": [{"name": one} for one in defenses]}), name)


def grid(name: str, defenses: Sequence[str], draw: Callable[[Axes, str], None]) -> None:
    """Draw one panel for each of ``defenses``, four per row."""
    rows = -(-len(defenses) // COLUMNS)
    figure = new_figure(230 * COLUMNS + 30, 190 * rows + 50)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel, defense in zip(axes, defenses, strict=False):
        draw(panel, defense)
        panel.set_title(defense, fontsize=10, color=INK)
        panel.tick_params(labelsize=8, colors=MUTED)
    for panel in axes[len(defenses) :]:
        panel.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(pad=0.6, rect=(0, 0, 1, 1 - 30 / (190 * rows + 50)))
    (IMAGES / "defenses" / f"{name}.png").write_bytes(render_png(figure))


def curves(
    axes: Axes, name: str, points: list[dict[str, Any]], before: str | None, arms: dict[str, dict[str, Any]]
) -> None:
    """Plot clean accuracy and attack success on test images by epoch, from the arm ``before`` to the result."""
    for metric, label, color in (
        ("clean_accuracy", "clean accuracy", GOOD),
        ("attack_success_rate", "attack success", BAD),
    ):
        found = {p["step"]: p["value"] for p in points if (p["arm"], p["name"]) == (name, metric)}
        if before is not None:
            found[0] = arms[before][metric]
        last = max(found) + 1
        found[last] = arms[name][metric]
        steps = range(min(found), last + 1)
        values = [found.get(step, math.nan) for step in steps]  # a gap where a stage is not measured
        axes.plot(steps, values, color=color, label=label, linewidth=1.3)
        axes.plot([last], [found[last]], "o", color=color, markersize=3.5)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("epoch", fontsize=8, color=MUTED)


def histogram(axes: Axes, name: str, folder: Path, file: str, truth: str) -> None:
    """Plot histograms of the suspicion of images for which ``truth`` is false and true, each normalized to one.

    Both are columns of the ``file`` of the arm ``name``.
    """
    with (folder / name / file).open() as opened:
        rows = list(csv.DictReader(opened))
    suspicion = np.array([float(row["suspicion"]) for row in rows])
    is_true = np.array([row[truth] in ("1", "True", "true") for row in rows])
    edges = np.linspace(suspicion.min(), np.quantile(suspicion, 0.998), 31)
    for chosen, label, color in ((~is_true, "clean", GOOD), (is_true, truth.removeprefix("is_"), BAD)):
        values = suspicion[chosen].clip(None, edges[-1])
        axes.hist(
            values, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.6, color=color, label=label
        )
    axes.set_xlabel("suspicion", fontsize=8, color=MUTED)


if __name__ == "__main__":
    main()
