"""Accuracy and attack success of `abl_plus` on 10,000 images of CIFAR-10, poisoned and clean.

``python benchmarks/abl_plus_cifar10.py`` runs what is missing and writes docs/results/abl-plus-cifar10.md; about five
minutes per attack and seed on one idle core that supports bfloat16. CIFAR-10 must be under var/data (`make data` or
`bdlab data fetch cifar10`). It can be interrupted: the numbers of finished runs are in
docs/results/abl-plus-cifar10.jsonl, stages under var/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from _numbers import Numbers
from abl_plus_digits import label_of, run, save_classes, show_row
from attacks_cifar10 import DATA_DIR, DATASET, ROOT, TRAINING, WORK

from app.specs.dataset import Cifar10
from app.specs.experiment import ExperimentSpec
from app.specs.stages import LAB_VERSION
from worker.lab.data.datasets import load_whole_dataset

TABLE = ROOT / "docs" / "results" / "abl-plus-cifar10.md"
NUMBERS = Numbers(TABLE)
SEEDS = (0, 1, 2)


class Cell(NamedTuple):
    """An attack with the fields that differ from its defaults, and the data."""

    attack: str
    fields: dict[str, Any]
    dataset: dict[str, Any] = DATASET
    shown: str = ""
    """What the page says of the data."""

    @property
    def label(self) -> str:
        return label_of(self.attack, self.fields) + self.shown


def first_classes(classes: int) -> Cell:
    """Clean images of the first ``classes`` of CIFAR-10, 1,000 of each."""
    dataset = {"name": "imported", "key": f"cifar10-0-{classes - 1}", "train_size": 1000 * classes}
    return Cell("none", {}, dataset, f", classes 0 to {classes - 1}")


FEW_CLASSES = (3, 5)
CELLS = (
    Cell("badnets", {}),
    Cell("none", {}),
    Cell("sig", {"poisoning_rate": 0.5}),
    Cell("blend", {}),
    Cell("wanet", {}),
    Cell("badnets", {"label_mode": "all_to_all"}),
    *map(first_classes, FEW_CLASSES),
    Cell("none", {}, {"name": "gtsrb", "train_size": 10_000}, ", GTSRB"),
    Cell("badnets", {}, {"name": "gtsrb", "train_size": 10_000}, ", GTSRB"),
)
HEAD = """# abl_plus on 10,000 images of CIFAR-10

Clean accuracy and attack success rate before and after the defense `abl_plus`, which is described in
[defenses/training.md](../defenses/training.md#abl_plus). Measured with
`python benchmarks/abl_plus_cifar10.py --seeds {seeds}` and lab version {lab_version}, the last cell on {date}:
{processor}, one thread, Python {python}, torch {torch}; the numbers are in
[abl-plus-cifar10.jsonl](abl-plus-cifar10.jsonl). 10,000 training images (class proportions kept) and all 10,000 test
images; `small_cnn`; {epochs} epochs in bfloat16, the rest of the recipe at its defaults. Attacks at their defaults; SIG
is clean-label and poisons half of its class. Each cell has one number for each of the seeds in parentheses, in percent.

`found`: the classes in which the defense finds poison (the target is class 0; `-`: none). `AUROC`: that of its ranking.
`decoys`: how many of the decoys in other classes it would have noticed, in all seeds.
Rules and constants were set on digits (seeds 100 to 103, target classes 0, 3 and 5); that classes are divided, and SIG,
were looked at on target class 5 here, seed 100. Seen here before the sides of a class were weighed as they are now: by
claims alone SIG's clean side was accused.

| attack (seeds) | clean accuracy before | after | attack success before | after | found | AUROC | decoys |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
WaNet, which takes hold only in part here, is not found: no sign divides its class. All five decoys would have been
noticed in that set, a warp among them: the attacker's trigger need not be like a decoy. In the all-to-all set the
poison of all ten classes is found; neither side of nine of them explains the other. The accuracy falls by 2 points
there, where a tenth of the images is left out or trained on against its label.

Cells that it was tuned on: SIG on class 5, seed 100, goes from 72.0 / 85.5 to 70.2 / 0.0, BadNets at 5 % on class 3,
seed 101, from 73.5 / 100.0 to 73.2 / 0.3, Blend at 5 % on class 7, seed 102, from 73.2 / 99.7 to 73.1 / 0.3. In the
first, half of the clean airplanes dominates the other half more surely (0.98) than the poison dominates its class
(0.91), and was removed as well (66.3 / 0.0), until unseen members of such a side had to be recognized.

Not measured: other rates, GTSRB, and all of CIFAR-10.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of abl_plus on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", metavar="ATTACK", help="run the rows of these attacks only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for cell in CELLS:
            if options.only is None or cell.attack in options.only:
                measure(cell, seed)
                TABLE.write_text(page())
    TABLE.write_text(page())
    print(page())
    return 0


def make_spec(cell: Cell, seed: int) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "dataset": cell.dataset,
            "attack": {"name": cell.attack} | cell.fields,
            "training": TRAINING,
            "defenses": [{"name": "abl_plus"}],
            "seeds": [seed],
        }
    )


def name_of(cell: Cell, seed: int) -> str:
    """The key of a run in the file of numbers."""
    return f"{cell.label}, seed {seed}, {make_spec(cell, seed).spec_hash[:12]}"


def measure(cell: Cell, seed: int) -> None:
    """Run an attack and seed and store the numbers, unless they are there."""
    key = name_of(cell, seed)
    finished = NUMBERS.find(key)
    if finished and finished["lab_version"] == LAB_VERSION:
        return
    data_dir = DATA_DIR
    if cell.dataset["name"] == "imported":
        data_dir = WORK
        whole = load_whole_dataset(Cifar10(), DATA_DIR)
        chosen = range(cell.dataset["train_size"] // 1000)
        save_classes(whole, chosen, WORK / "imported" / f"{cell.dataset['key']}.safetensors")
    answer, (belief,) = run(make_spec(cell, seed), WORK, data_dir)
    (before,), (after,) = (arm["seeds"] for arm in answer["arms"])
    facts = {"made": making([seed]), "lab_version": LAB_VERSION}
    NUMBERS.store(key, facts | {"before": before, "after": after, "believes": belief})
    print(f"{key}: {before['clean_accuracy']} -> {after['clean_accuracy']}", file=sys.stderr, flush=True)


def page() -> str:
    """The page of all runs that are finished."""
    stored = NUMBERS.read()
    rows, done = "", []
    for cell in CELLS:
        keys = {seed: name_of(cell, seed) for seed in SEEDS}
        found = {seed: stored[key] for seed, key in keys.items() if key in stored}
        if found:
            label = f"{cell.label} ({', '.join(map(str, found))})"
            columns = ([run[name] for run in found.values()] for name in ("before", "after", "believes"))
            rows += show_row(label, *columns)
            done += list(found.values())
    newest = max((run["made"] for run in done), key=lambda made: made["date"])
    versions = ", ".join(map(str, sorted({run["lab_version"] for run in done})))
    facts = newest | {"seeds": " ".join(map(str, SEEDS)), "lab_version": versions}
    return HEAD.format(**facts, epochs=TRAINING["epochs"]) + rows + NOTES


if __name__ == "__main__":
    sys.exit(main())
