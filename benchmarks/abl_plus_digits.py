"""Accuracy and attack success of `abl_plus` on digits, against every attack and on clean data.

``python benchmarks/abl_plus_digits.py`` writes docs/results/abl-plus-digits.md; about half an hour on one idle core.
Clean data are also tried with few classes: all sets of two, three and five neighboring digits. The
attacks and the victim are those of attacks_digits.py, and finished stages are cached together with that benchmark's.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from attacks_digits import ATTACKS, MODEL, ROOT, TRAINING, WORK, cell

from app.specs.dataset import Digits
from app.specs.experiment import ExperimentSpec
from worker.lab.data import files
from worker.lab.data.datasets import Dataset, Split, load_whole_dataset
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

TABLE = ROOT / "docs" / "results" / "abl-plus-digits.md"
CELLS: tuple[tuple[str, dict[str, Any]], ...] = (("none", {}), *((name, f) for name, f, _ in ATTACKS))
HEAD = """# abl_plus on digits

Clean accuracy and attack success rate before and after the defense `abl_plus`, which is described in
[defenses/training.md](../defenses/training.md#abl_plus). Measured with
`python benchmarks/abl_plus_digits.py` on {date}: {processor}, one
thread, Python {python}, torch {torch}. The attacks with their fields, the victim and its recipe are those of
[attacks-digits](attacks-digits.md); `abl_plus` is at its defaults. Each cell has seeds {seeds} in this order, in
percent. The method was tuned on seeds 100 to 103, with target classes 0, 3 and 5, other rates, and on few classes.
Earlier versions of it were measured on these cells before. Known when it was changed on the tuning seeds: that two
earlier divisions of the classes missed Blend and others under class 0; that the wrong side of Refool's class was
removed; that five classes were accused, wrongly but for one, on two seeds of `input_aware`; and, for how the two sides
are weighed, that by claims alone the wrong side of SIG's class was accused on CIFAR-10.

`found`: the classes in which the defense finds poison (the target is class 0; `-`: none). `AUROC`: that of its ranking.
`decoys`: how many of the decoys in other classes it would have noticed, in all seeds.

| attack | clean accuracy before | after | attack success before | after | found | AUROC | decoys |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
## Failures

- Under class 0, dirty-label SIG is not found, and of Blend's poison on seed 0 73 % is isolated. Under class 3 (below)
  both are found, and nothing of the attack is left.
- Under class 0, Refool, hidden triggers and Poison Frogs are not found: part of the first one's poison is divided from
  the rest and explains it, and the others put few or no images of other classes under a label.
- The poison of WaNet and of `input_aware` is mixed with the clean images of its class, but for WaNet under class 3 and
  on one seed under class 0. The cross samples of `input_aware`, which have their own labels and triggers of other
  images, lead to accusations: on one seed the target class is found with part of its poison, and on one a clean class
  is taken for poisoned. The accuracy falls by 9 and 5 points, and half or all of the attack is left.

Wherever nothing is found the model is the undefended one, with a warning that says which decoys would have been
noticed.
"""
AGAIN = ("badnets", "blend", "refool", "sig", "wanet", "hidden_trigger")
OTHERS: tuple[tuple[str, dict[str, Any], list[int]], ...] = (
    ("none", {}, list(range(20, 26))),
    ("none", {}, list(range(26, 32))),
    *(
        (name, fields | {"target_class": 3}, [20, 21, 22])
        for name, fields in CELLS
        if name in AGAIN and "label_mode" not in fields
    ),
)
OTHERS_HEAD = """
## Other seeds

Clean data with seeds 20 to 31, and attacks on class 3 with seeds 20 to 22.

| attack | clean accuracy before | after | attack success before | after | found | AUROC | decoys |
|---|---|---|---|---|---|---|---|
"""
FEW_CLASSES = (2, 3, 5)
FEW_HEAD = """
## Clean data with few classes

All sets of neighboring digits, seeds {seeds}. Accuracy before and after, in percent: the mean over all runs, and the
run that loses most. `divided`: in how many runs some class looked like two; `confirmed`: in how many of these the
removal test found poison, so that the model was changed. With two classes nothing is judged.

| classes | runs | divided | confirmed | mean before | mean after | largest loss |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of abl_plus on digits.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    text = HEAD.format(
        **making(seeds),
    )
    for name, fields in CELLS:
        text += row(name, fields, seeds)
        print(f"{name}: done", file=sys.stderr)
    text += NOTES + OTHERS_HEAD
    for name, fields, others in OTHERS:
        text += row(name, fields, others)
        print(f"{name}, other seeds: done", file=sys.stderr)
    text += FEW_HEAD.format(seeds=", ".join(map(str, seeds)))
    for classes in FEW_CLASSES:
        text += row_of_few(classes, seeds)
        print(f"{classes} classes: done", file=sys.stderr)
    TABLE.write_text(text)
    print(text)
    return 0


def row(name: str, fields: dict[str, Any], seeds: list[int]) -> str:
    """The table row of one attack, with all seeds."""
    spec = ExperimentSpec.model_validate(
        {
            "attack": {"name": name} | fields,
            "model": MODEL,
            "training": TRAINING,
            "defenses": [{"name": "abl_plus"}],
            "seeds": seeds,
        }
    )
    answer, believes = run(spec, WORK, WORK)
    before, after = (arm["seeds"] for arm in answer["arms"])
    return show_row(label_of(name, fields), before, after, believes)


def label_of(name: str, fields: dict[str, Any]) -> str:
    """The attack and its form."""
    mode = fields.get("label_mode") or ("dirty label" if fields.get("clean_label") is False else "")
    return f"{name}, {mode}" if mode else name


def show_row(
    label: str, before: list[dict[str, Any]], after: list[dict[str, Any]], believes: list[dict[str, Any]]
) -> str:
    """The table row of an attack, from the numbers and beliefs of each of its seeds."""
    many = any(label > 9 for belief in believes for label in belief["target_classes"])
    accused = [("," * many).join(map(str, belief["target_classes"])) for belief in believes]
    cells = [
        label,
        cell(before, "clean_accuracy"),
        cell(after, "clean_accuracy"),
        cell(before, "attack_success_rate"),
        cell(after, "attack_success_rate"),
        " / ".join(c or "-" for c in accused),
        auroc(after),
        f"{sum(decoy['noticed'] for belief in believes for decoy in belief['power'])} of "
        f"{sum(len(belief['power']) for belief in believes)}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def run(spec: ExperimentSpec, work: Path, data_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of ``spec`` and what `abl_plus` believes on each seed; stages are cached under ``work``."""
    folder = work / spec.spec_hash[:12]
    recorder = FolderRecorder(folder)
    try:
        answer = run_experiment(spec, recorder, FolderStore(work / "stages"), data_dir=data_dir, device="cpu")
    finally:
        recorder.close()
    paths = (folder / f"seed-{seed}" / "abl_plus" / "belief.json" for seed in spec.seeds)
    return answer, [json.loads(path.read_text())["believes"] for path in paths]


def row_of_few(classes: int, seeds: list[int]) -> str:
    """The table row of clean data with every set of ``classes`` neighboring digits, over all seeds."""
    whole = load_whole_dataset(Digits(), WORK)
    before: list[float] = []
    after: list[float] = []
    believes: list[dict[str, Any]] = []
    for first in range(len(whole.facts.class_names) - classes + 1):
        key = f"digits-{first}-{first + classes - 1}"
        save_classes(whole, range(first, first + classes), WORK / "imported" / f"{key}.safetensors")
        spec = ExperimentSpec.model_validate(
            {
                "dataset": {"name": "imported", "key": key},
                "attack": {"name": "none"},
                "model": MODEL,
                "training": TRAINING,
                "defenses": [{"name": "abl_plus"}],
                "seeds": seeds,
            }
        )
        answer, beliefs = run(spec, WORK, WORK)
        for arm, numbers in zip(answer["arms"], (before, after), strict=True):
            numbers += [100 * seed["clean_accuracy"] for seed in arm["seeds"]]
        believes += beliefs
    accused = sum(bool(belief["removal_tests"]) for belief in believes)
    confirmed = sum(belief["poisoned"] for belief in believes)
    loss = max(b - a for b, a in zip(before, after, strict=True))
    cells = [
        *map(str, (classes, len(before), accused, confirmed)),
        *(f"{n:.1f}" for n in (mean(before), mean(after), loss)),
    ]
    return "| " + " | ".join(cells) + " |\n"


def save_classes(whole: Dataset, chosen: range, path: Path) -> None:
    """Write the images of some classes as an imported dataset."""

    def of(split: Split) -> tuple[Any, Any]:
        rows = (split.labels >= chosen.start) & (split.labels < chosen.stop)
        return split.images[rows].numpy(), split.labels[rows].numpy() - chosen.start

    (x, y), (x_test, y_test) = of(whole.train), of(whole.test)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test, class_names=tuple(map(str, chosen)))


def auroc(seeds: list[dict[str, Any]]) -> str:
    values = [seed.get("isolation_auroc") for seed in seeds]
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
