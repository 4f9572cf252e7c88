"""Attacks on 10,000 images of CIFAR-10, undefended: clean accuracy, attack success, and visibility of the trigger.

``python benchmarks/attacks_cifar10.py`` writes docs/results/attacks-cifar10.md; two hours per seed on one idle core.
CIFAR-10 must be under var/data (`make data` or `bdlab data fetch cifar10`). Finished stages are cached under var/, so a
second run only builds the table.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from attacks_digits import COLUMNS, ROOT, STEALTH, cell, mean

from app.results.leaderboard.published import published
from app.specs.experiment import UNDEFENDED, ExperimentSpec
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

TABLE = ROOT / "docs" / "results" / "attacks-cifar10.md"
WORK = ROOT / "var" / "cifar10-subset"
DATA_DIR = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
DATASET = {"name": "cifar10", "train_size": 10_000}
TRAINING: dict[str, Any] = {"epochs": 20, "precision": "bfloat16"}
FINE_TUNED = {"start": "surrogate"}
"""The setting of hidden trigger and Poison Frogs: the victim is fine-tuned from the attacker's surrogate."""
HIDDEN = {"size": 12, "poisoning_rate": 1.0, "surrogate_epochs": 20, "craft_steps": 100}
FROGS = {"poisoning_rate": 0.5, "surrogate_epochs": 20}
BREW = {"preset": "one_restart", "surrogate_epochs": 20}
ONE_IMAGE: dict[str, dict[str, Any]] = {"poison_frogs": FROGS, "witches_brew": BREW}
"""Attacks on a single test image, and their fields."""
TARGET_IMAGES = range(150, 1650, 150)
"""Test images, none of them of the target class, that these attack one by one."""

PUBLISHED = {
    cell.attack: f"{100 * cell.clean_accuracy:.1f} / {100 * cell.attack_success_rate:.1f}"
    for cell in published("cifar10", None)
    if (cell.source, cell.defense) == ("benchmark", UNDEFENDED)
}

# The second entry has the fields that differ from the defaults, the third those of the training.
ATTACKS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("badnets", {}, {}),
    ("badnets", {"label_mode": "all_to_all"}, {}),
    ("single_pixel", {}, {}),
    ("single_pixel", {"preset": "authors"}, {}),
    ("low_frequency", {}, {}),
    ("low_frequency", {"preset": "authors"}, {}),
    ("hidden_trigger", HIDDEN, FINE_TUNED),
    ("hidden_trigger", {**HIDDEN, "source_class": 1}, FINE_TUNED),
    *(("poison_frogs", {**FROGS, "target_image": index}, FINE_TUNED) for index in TARGET_IMAGES),
    ("blend", {}, {}),
    ("refool", {}, {}),
    ("refool", {"preset": "benchmark"}, {}),
    ("refool", {"preset": "paper"}, {}),
    ("sig", {"clean_label": False, "rate_of": "training_set"}, {}),
    ("sig", {"poisoning_rate": 0.5}, {}),
    ("wanet", {}, {}),
    ("trojan", {}, {}),
    ("clean_label", {"poisoning_rate": 0.5}, {}),
    ("input_aware", {"mask_epochs": 5, "generator_epochs": 30}, {}),
    ("lira", {}, {}),
    ("lira", {"hand_over": True}, {}),
    ("issba", {}, {}),
    ("blind", {}, {}),
    ("bpp", {}, {}),
    ("bpp", {"preset": "benchmark"}, {}),
    ("adaptive_blend", {}, {}),
    ("adaptive_patch", {}, {}),
    ("tact", {}, {}),
    ("ftrojan", {}, {}),
    ("ctrl", {}, {}),
    ("ctrl", {"preset": "benchmark"}, {}),
    ("k_way", {}, {}),
    ("multi_target", {}, {}),
    ("narcissus", {"surrogate_epochs": 20}, {}),
    ("sleeper_agent", {"surrogate_epochs": 20}, {}),
    *(("witches_brew", {**BREW, "target_image": index}, {}) for index in TARGET_IMAGES),
)
HEAD = """# Attacks on 10,000 images of CIFAR-10

Clean accuracy and success of the attacks without a defense, and how visible their triggers are. Measured with
`python benchmarks/attacks_cifar10.py` on {date}: {processor}, one thread, Python {python}, torch {torch}. 10,000
training images (class proportions kept) and all 10,000 test images; `small_cnn`; {epochs} epochs in bfloat16, the rest
of the recipe at its defaults. Seeds {seeds}; each cell has one number per seed, in percent. The clean model's accuracy
is {clean}. Fields are at their defaults, except for those in the second column. The published numbers are clean
accuracy / attack success of a PreActResNet-18 on all of CIFAR-10, from BackdoorBench's leaderboard (Wu et al. 2022).

A network of this size on a fifth of the set is far from the published 91 to 95 % accuracy; this page shows whether an
attack works. Hidden trigger and Poison Frogs have their sources' threat model: the victim is fine-tuned from the
attacker's surrogate, whose accuracy is the clean accuracy of their rows. `input_aware` trains its networks for fewer
epochs than its defaults, because they are twenty times the victim's size.

| attack | changed fields | clean accuracy | attack success | cross-trigger accuracy | published |
|---|---|---|---|---|---|
"""
STEALTH_HEAD = """
Visibility of the triggers on test images, mean over the seeds (gray levels from 0 to 255):

| attack | PSNR, dB | SSIM | l_inf | l_2 | pixels changed |
|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of attacks on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results: list[dict[str, list[dict[str, Any]]]] = []
    for name, fields, training in ATTACKS:
        answer = arms({"name": name} | fields, training, seeds)
        results.append(answer)
        print(f"{name} {fields}: {cell(answer['undefended'], 'attack_success_rate')}", file=sys.stderr)
        write(results, seeds)
    print(TABLE.read_text())
    return 0


def arms(
    attack: dict[str, Any], training: dict[str, Any], seeds: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Results of each arm, one per seed."""
    spec = ExperimentSpec.model_validate(
        {
            "dataset": DATASET,
            "attack": attack,
            "training": TRAINING | training,
            "reference": True,
            "seeds": seeds,
        }
    )
    recorder = FolderRecorder(WORK / spec.spec_hash[:12])
    try:
        answer = run_experiment(spec, recorder, FolderStore(WORK / "stages"), data_dir=DATA_DIR, device="cpu")
    finally:
        recorder.close()
    return {arm["arm"]: arm["seeds"] for arm in answer["arms"]}


def write(results: list[dict[str, list[dict[str, Any]]]], seeds: list[int]) -> None:
    """Write the tables of the results so far."""
    text = HEAD.format(
        **making(seeds),
        epochs=TRAINING["epochs"],
        clean=cell(results[0]["clean"], "clean_accuracy"),
    )
    rows = list(zip(ATTACKS, results, strict=False))
    others = [(name, fields, answer) for (name, fields, _), answer in rows if name not in ONE_IMAGE]
    for name, fields, answer in others:
        changed = ", ".join(f"{key} {value}" for key, value in fields.items()) or "none"
        cells = " | ".join(cell(answer["undefended"], metric) for metric in COLUMNS)
        text += f"| {name} | {changed} | {cells} | {PUBLISHED.get(name, '-')} |\n"
    for name in ONE_IMAGE:
        answers = [answer for (attack, _, _), answer in rows if attack == name]
        text += hits(name, answers) if len(answers) == len(TARGET_IMAGES) else ""
    text += STEALTH_HEAD
    for name, _, answer in others:
        cells = " | ".join(mean(answer["undefended"], metric) for metric in STEALTH)
        text += f"| {name} | {cells} |\n"
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(text)


def hits(name: str, answers: list[dict[str, list[dict[str, Any]]]]) -> str:
    """A sentence on how many of the target images of an attack are misclassified as the target class."""
    poisoned, clean = (
        sum(seed["target_image_hit"] for answer in answers for seed in answer[arm])
        for arm in ("undefended", "clean")
    )
    accuracies = [seed["clean_accuracy"] for answer in answers for seed in answer["undefended"]]
    changed = ", ".join(f"{key} {value}" for key, value in ONE_IMAGE[name].items())
    return (
        f"\n`{name}` ({changed}) attacks one test image at a time: test images "
        f"{', '.join(map(str, TARGET_IMAGES))}. {poisoned:.0f} of {len(accuracies)} are given the target class, and "
        f"{clean:.0f} by the model without poison. Its clean accuracy is {100 * min(accuracies):.1f} to "
        f"{100 * max(accuracies):.1f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
