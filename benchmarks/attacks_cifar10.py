"""Attacks on 10,000 images of CIFAR-10, undefended: clean accuracy, attack success, and visibility of the trigger.

``python benchmarks/attacks_cifar10.py`` writes docs/results/attacks-cifar10.md; two hours per seed on one idle core.
CIFAR-10 must be under var/data (`make data` or `bdlab data fetch cifar10`). The numbers of what is finished are in
docs/results/attacks-cifar10.jsonl, its models under var/; the page has all of it and names the rest. So an interrupted
run goes on where it stopped, and ``--only`` runs single rows.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from _numbers import Numbers
from attacks_digits import COLUMNS, ROOT, STEALTH, cell, mean

from app.results.leaderboard.published import published
from app.specs.experiment import ATTACK, CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.stages import LAB_VERSION
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore
from worker.lab.manifest import MANIFEST_NAME

TABLE = ROOT / "docs" / "results" / "attacks-cifar10.md"
NUMBERS = Numbers(TABLE)
WORK = ROOT / "var" / "cifar10-subset"
DATA_DIR = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
DATASET = {"name": "cifar10", "train_size": 10_000}
TRAINING: dict[str, Any] = {"epochs": 20, "precision": "bfloat16"}
FINE_TUNED: dict[str, dict[str, Any]] = {"training": {"start": "surrogate"}}
"""The setting of hidden trigger and Poison Frogs: the victim is fine-tuned from the attacker's surrogate."""
HIDDEN = {"size": 12, "poisoning_rate": 1.0, "surrogate_epochs": 20, "craft_steps": 100}
FROGS = {"poisoning_rate": 0.5, "surrogate_epochs": 20}
BREW = {"preset": "one_restart", "surrogate_epochs": 20}
ONE_IMAGE: dict[str, dict[str, Any]] = {"poison_frogs": FROGS, "witches_brew": BREW}
"""Attacks on a single test image, and their fields."""
SEEDS = (0, 1, 2)
"""Seeds of the page."""
FACTOR_SEED = 100
"""Seed of the one-factor experiments."""
TARGET_IMAGES = range(150, 1650, 150)
"""Test images, none of them of the target class, that these attack one by one."""

PUBLISHED = {
    cell.attack: f"{100 * cell.clean_accuracy:.1f} / {100 * cell.attack_success_rate:.1f}"
    for cell in published("cifar10", None)
    if (cell.source, cell.defense) == ("benchmark", UNDEFENDED)
}


class Row(NamedTuple):
    """An attack, its fields that differ from the defaults, and other parts of the experiment that do."""

    attack: str
    fields: dict[str, Any]
    changes: Mapping[str, dict[str, Any]] = MappingProxyType({})
    shown: str = ""
    """What the page says of fields that are long."""


def pixels(near: int, far: int) -> dict[str, Any]:
    """Fields of `k_way`: white pixels at the crossings of two rows and two columns."""
    places = [(row, column) for row in (near, far) for column in (near, far)]
    return {"triggers": [{"name": "single_pixel", "row": row, "column": column} for row, column in places]}


ATTACKS = (
    Row("badnets", {}),
    Row("badnets", {"label_mode": "all_to_all"}),
    Row("single_pixel", {}),
    Row("single_pixel", {"preset": "authors"}),
    Row("low_frequency", {}),
    Row("low_frequency", {"preset": "authors"}),
    Row("hidden_trigger", HIDDEN, FINE_TUNED),
    Row("hidden_trigger", {**HIDDEN, "source_class": 1}, FINE_TUNED),
    *(Row("poison_frogs", {**FROGS, "target_image": index}, FINE_TUNED) for index in TARGET_IMAGES),
    Row("blend", {}),
    Row("refool", {}),
    Row("refool", {"preset": "benchmark"}),
    Row("refool", {"preset": "paper"}),
    Row("sig", {"clean_label": False, "rate_of": "training_set"}),
    Row("sig", {"poisoning_rate": 0.5}),
    Row("wanet", {}),
    Row("trojan", {}),
    Row("clean_label", {"poisoning_rate": 0.5}),
    Row("input_aware", {"mask_epochs": 5, "generator_epochs": 30}),
    Row("lira", {}),
    Row("lira", {"hand_over": True}),
    Row("issba", {}),
    Row("blind", {}),
    Row("adversarial_embedding", {}),
    Row("bpp", {}),
    Row("bpp", {"preset": "benchmark"}),
    Row("adaptive_blend", {}),
    Row("adaptive_patch", {}),
    Row("tact", {}),
    Row("tact", {"preset": "toolbox"}),
    Row("tact", {"size": 8, "margin": 3}),
    Row("ftrojan", {}),
    Row("ftrojan", {"magnitude": 100}),
    Row("ctrl", {}),
    Row("ctrl", {"preset": "benchmark"}),
    Row("k_way", {}),
    Row("k_way", {"preset": "toolbox"}),
    Row("k_way", pixels(8, 23), shown="pixels in rows and columns 8 and 23"),
    Row("multi_target", {}),
    Row("narcissus", {"surrogate_epochs": 20}),
    Row("sleeper_agent", {"surrogate_epochs": 20}),
    *(Row("witches_brew", {**BREW, "target_image": index}) for index in TARGET_IMAGES),
)
NO_AUGMENTATION = {"training": {"augmentation": {"crop_padding": 0, "flip": False}}}
WHOLE_SET: dict[str, dict[str, Any]] = {"dataset": {"train_size": None}}
FACTORS = (
    (Row("ftrojan", {}, NO_AUGMENTATION), "no augmentation"),
    (
        Row("ftrojan", {}, {"training": {"batch_size": 32, "learning_rate": 0.025}}),
        "batches of 32 and a quarter of the learning rate: four times as many steps",
    ),
    (Row("ftrojan", {"magnitude": 100}), "magnitude 100 instead of 30"),
    (Row("k_way", pixels(2, -3), NO_AUGMENTATION), "pixels 2 from the edges, no augmentation"),
    (Row("k_way", pixels(8, 23)), "pixels in rows and columns 8 and 23"),
    (Row("k_way", pixels(4, -5)), "pixels 4 from the edges"),
    (
        Row("adaptive_blend", {"poisoning_rate": 0.015, "cover_rate": 0.015}),
        "the source's number of images: 150 poisoned and 150 cover samples, a rate of 0.015",
    ),
    (Row("adaptive_blend", {"poisoning_rate": 0.05, "cover_rate": 0.05}), "a rate of 0.05"),
    (Row("adaptive_blend", {"poisoning_rate": 0.1, "cover_rate": 0.1}), "a rate of 0.1"),
    (Row("adaptive_patch", {"poisoning_rate": 0.05, "cover_rate": 0.1}), "a rate of 0.05, cover samples 0.1"),
    (Row("tact", {"size": 8, "margin": 3}), "a patch as large as the toolbox's, 8 x 8, 3 from the edges"),
    (
        Row("sleeper_agent", {"surrogate_epochs": 20, "poisoning_rate": 0.05}),
        "surrogate_epochs 20, and the source's number of images, 500: a rate of 0.05",
    ),
    (Row("adaptive_blend", {}, WHOLE_SET), "all 50,000 images, 150 of them poisoned"),
    (Row("adaptive_patch", {}, WHOLE_SET), "all 50,000 images, 150 of them poisoned"),
    (Row("wanet", {}, WHOLE_SET), "all 50,000 images"),
    (Row("bpp", {"cover_rate": 0}), "no cover samples"),
    (Row("bpp", {"dithering": False}), "no dithering"),
    (Row("none", {}), "no poison, all 10,000 images"),
    (Row("none", {}, {"dataset": {"train_size": 9_000}}), "no poison, 9,000 images"),
    (Row("none", {}, {"dataset": {"train_size": 8_000}}), "no poison, 8,000 images"),
)
"""One-factor experiments on attacks that do not succeed, and what is changed."""
HEAD = """# Attacks on 10,000 images of CIFAR-10

Clean accuracy and success of the attacks without a defense, how long they take to prepare, and how visible their
triggers are. Measured with `python benchmarks/attacks_cifar10.py --seeds {seeds}` and lab version {lab_version}, the
last row on {date}: {processor}, one thread, Python {python}, torch {torch}; the numbers are in
[attacks-cifar10.jsonl](attacks-cifar10.jsonl). 10,000 training images (class proportions kept) and all 10,000 test
images; `small_cnn`; {epochs} epochs in bfloat16, the rest of the recipe at its defaults. Each cell has one number per
seed of its row, accuracies and success in percent. The clean model's accuracy is {clean}; the change is against the
clean model of the same seed. Fields are at their defaults, except for those in the second column. Seconds are those of
everything that the attack computes before the victim is trained, a surrogate included, on a machine that also ran other
programs; with an idle core they are fewer. The published numbers are clean accuracy / attack success of a
PreActResNet-18 on all of CIFAR-10, from BackdoorBench's leaderboard (Wu et al. 2022).

A network of this size on a fifth of the set is far from the published 91 to 95 % accuracy; this page shows whether an
attack works. Hidden trigger and Poison Frogs have their sources' threat model: the victim is fine-tuned from the
attacker's surrogate, whose accuracy is the clean accuracy of their rows. `input_aware` trains its networks for fewer
epochs than its defaults, because they are twenty times the victim's size.

| attack | changed fields | seeds | clean accuracy | change | attack success | cross-trigger | seconds | published |
|---|---|---|---|---|---|---|---|---|
"""
BY_HAND = "\n## Reasons\n"
"""The heading of the page's last part, which is written by hand and kept."""
FACTORS_HEAD = """
One-factor experiments: attacks that do not succeed at their source's setting, and clean models with fewer images, as
poisoning leaves them (seed 100, not reported above):

| attack | changed | clean accuracy | attack success |
|---|---|---|---|
"""
STEALTH_HEAD = """
Visibility of the triggers on test images, mean over the seeds (gray levels from 0 to 255):

| attack | changed fields | PSNR, dB | SSIM | l_inf | l_2 | pixels changed |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of attacks on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="ATTACK", help="run the rows of these attacks only")
    parser.add_argument("--factors", action="store_true", help="run the one-factor experiments as well")
    parser.add_argument("--page", action="store_true", help="run nothing; write the page of what is finished")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page:
        # Seed by seed, so that an interrupted run leaves as many rows as possible.
        rows = [(row, seed) for seed in options.seeds for row in ATTACKS]
        rows += [(row, FACTOR_SEED) for row, _ in FACTORS if options.factors]
        for row, seed in rows:
            if options.only is None or row.attack in options.only:
                measure(row, seed)
                TABLE.write_text(page())
    TABLE.write_text(page())
    print(page())
    return 0


def make_spec(row: Row, seed: int) -> ExperimentSpec:
    """The experiment of one row and seed. One-factor experiments have no clean arm."""
    return ExperimentSpec.model_validate(
        {
            **row.changes,
            "dataset": DATASET | row.changes.get("dataset", {}),
            "attack": {"name": row.attack} | row.fields,
            "training": TRAINING | row.changes.get("training", {}),
            "reference": seed != FACTOR_SEED,
            "seeds": [seed],
        }
    )


def measure(row: Row, seed: int) -> None:
    """Run the experiment of a row and seed and store its numbers, unless they are there."""
    finished = find_finished(row, seed)
    if finished and finished["lab_version"] == LAB_VERSION:
        return
    spec = make_spec(row, seed)
    recorder = FolderRecorder(WORK / spec.spec_hash[:12])
    try:
        run_experiment(spec, recorder, FolderStore(WORK / "stages"), data_dir=DATA_DIR, device="cpu")
    finally:
        recorder.close()
    manifest = json.loads((recorder.folder / MANIFEST_NAME).read_text())
    arms = {arm["arm"]: arm["seeds"][0] for arm in manifest["results"]["arms"]}
    # What the attack computes first, and the poisoned set itself.
    seconds = sum(stage["seconds"] for stage in manifest["stages"] if stage["arm"] in (ATTACK, None))
    facts = {"made": making([seed]), "lab_version": LAB_VERSION, "seconds": seconds}
    NUMBERS.store(name_of(row, seed), facts | {"arms": arms})
    success = cell([arms.get(UNDEFENDED, {})], "attack_success_rate")
    print(f"{row.attack} {row.fields}, seed {seed}: {success}", file=sys.stderr, flush=True)


def name_of(row: Row, seed: int) -> str:
    """The key of a row and seed in the file of numbers, which people can read, too."""
    fields = "" if row.attack == "none" else f" {describe(row)}"
    return f"{row.attack}{fields}, seed {seed}, {make_spec(row, seed).spec_hash[:12]}"


def find_finished(row: Row, seed: int) -> dict[str, Any] | None:
    """The results of each arm of a row and seed, its seconds, and how it was made; None if it was not run."""
    document = NUMBERS.find(name_of(row, seed))
    if document is None:
        return None
    arms = document.pop("arms")
    # Without poison there is only a clean arm.
    return document | arms | {UNDEFENDED: arms.get(UNDEFENDED, arms.get(CLEAN))}


def find_answers(row: Row) -> dict[int, dict[str, Any]]:
    """`find_finished` of every seed of the page that is finished."""
    answers = {seed: find_finished(row, seed) for seed in SEEDS}
    return {seed: answer for seed, answer in answers.items() if answer is not None}


def page() -> str:
    """The page of everything that is finished, and the part that is written by hand."""
    answers = {number: find_answers(row) for number, row in enumerate(ATTACKS)}
    measured = [answer for found in answers.values() for answer in found.values()]
    cleans = {
        seed: answer["clean"]
        for number, found in answers.items()
        for seed, answer in found.items()
        if not ATTACKS[number].changes
    }
    newest = max((answer["made"] for answer in measured), key=lambda made: made["date"])
    text = HEAD.format(
        **newest | {"seeds": " ".join(map(str, SEEDS))},
        lab_version=", ".join(map(str, sorted({answer["lab_version"] for answer in measured}))),
        epochs=TRAINING["epochs"],
        clean=cell([clean for _, clean in sorted(cleans.items())], "clean_accuracy"),
    )
    rows = [(row, answers[i]) for i, row in enumerate(ATTACKS) if answers[i] and row.attack not in ONE_IMAGE]
    for row, found in rows:
        ours = [answer["undefended"] for answer in found.values()]
        lost = " / ".join(
            f"{100 * (answer['undefended']['clean_accuracy'] - answer['clean']['clean_accuracy']):+.1f}"
            for answer in found.values()
        )
        accuracy, success, crossed = (cell(ours, metric) for metric in COLUMNS)
        seconds = " / ".join(f"{answer['seconds']:.0f}" for answer in found.values())
        seeds = ", ".join(map(str, found))
        text += f"| {row.attack} | {describe(row)} | {seeds} | {accuracy} | {lost} | {success} | {crossed} |"
        text += f" {seconds} | {PUBLISHED.get(row.attack, '-')} |\n"
    attacked = {row.attack for i, row in enumerate(ATTACKS) if answers[i]}
    for name in ONE_IMAGE:
        text += hits(name, [answers[i] for i, row in enumerate(ATTACKS) if row.attack == name])
    missing = dict.fromkeys(
        f"`{row.attack}` ({describe(row)})"
        for i, row in enumerate(ATTACKS)
        if not answers[i] and row.attack not in ONE_IMAGE
    )
    missing |= {f"`{name}`": None for name in ONE_IMAGE if name not in attacked}
    if missing:
        text += f"\nNot measured: {', '.join(missing)}.\n"
    text += write_factors() + STEALTH_HEAD
    for row, found in rows:
        ours = [answer["undefended"] for answer in found.values()]
        cells = " | ".join(mean(ours, metric) for metric in STEALTH)
        text += f"| {row.attack} | {describe(row)} | {cells} |\n"
    return text + "".join(TABLE.read_text().partition(BY_HAND)[1:])


def describe(row: Row) -> str:
    """The fields that differ from the defaults."""
    return row.shown or ", ".join(f"{key} {value}" for key, value in row.fields.items()) or "none"


def write_factors() -> str:
    """The table of one-factor experiments, without those that are not finished."""
    found = [(row, what, find_finished(row, FACTOR_SEED)) for row, what in FACTORS]
    lines = [
        f"| {row.attack} | {what} | {cell([answer['undefended']], 'clean_accuracy')} | "
        f"{cell([answer['undefended']], 'attack_success_rate')} |\n"
        for row, what, answer in found
        if answer is not None
    ]
    return FACTORS_HEAD + "".join(lines)


def hits(name: str, answers: list[dict[int, dict[str, Any]]]) -> str:
    """A sentence on how many of the target images of an attack are misclassified as the target class."""
    every = [
        (index, seed, answer)
        for index, found in zip(TARGET_IMAGES, answers, strict=True)
        for seed, answer in found.items()
    ]
    if not every:
        return ""
    poisoned, clean = (sum(a[arm]["target_image_hit"] for *_, a in every) for arm in ("undefended", "clean"))
    accuracies = [answer["undefended"]["clean_accuracy"] for *_, answer in every]
    seconds = [answer["seconds"] for *_, answer in every]
    changed = ", ".join(f"{key} {value}" for key, value in ONE_IMAGE[name].items())
    tried = ", ".join(f"{index} (seed {seed})" for index, seed, _ in every)
    return (
        f"\n`{name}` ({changed}) attacks one test image at a time: test images {tried}. {poisoned:.0f} of "
        f"{len(every)} are given the target class, and {clean:.0f} by the model without poison. Its clean accuracy is "
        f"{100 * min(accuracies):.1f} to {100 * max(accuracies):.1f}, its preparation takes "
        f"{min(seconds):.0f} to {max(seconds):.0f} seconds.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
