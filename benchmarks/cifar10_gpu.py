"""Attacks x defenses on all of CIFAR-10 with resnet18 on a GPU, one seed.

``python benchmarks/cifar10_gpu.py run OUT`` computes; ``... page OUT`` writes docs/results/cifar10-gpu.md from the
results in OUT. ``run`` requires a GPU, the lab and cifar10.safetensors in ``--data``; ``page`` requires none of them.
Several processes share the GPU and a folder of stages. ``--epochs`` is the length of a victim's training, and every
other length is derived from it; with few epochs all are far below the defaults, to save time. With 7 epochs an H200 had
finished little more than half of the cells after seven minutes (13 processes at once, all tasks started; hence the
default of four processes).
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making

from app.specs.experiment import UNDEFENDED, ExperimentSpec
from app.specs.metrics import defense_effectiveness
from worker.lab.contracts import Scope
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "results" / "cifar10-gpu.md"
NO_ATTACK = "no attack"
TRAINING = ("abl", "abl_plus")
REPAIR = ("fine_tuning", "fine_pruning", "nad", "mcr", "anp", "i_bau")
TASKS = (("abl_plus",), ("abl", "i_bau", "anp", "fine_tuning", "fine_pruning", "nad", "mcr"))
"""The defenses that one process runs for an attack. Both tasks take about the same time."""
ATTACKS = ("BadNets", "Blend", "SIG", NO_ATTACK, "clean-label", "WaNet", "input-aware")
"""In this order, so that the columns finished when time is up are complete."""
SHOWN = ("BadNets", "Blend", "SIG", "clean-label", "input-aware", "WaNet", NO_ATTACK)


def attack(title: str, epochs: int) -> dict[str, Any]:
    """The spec of an attack: rate 0.1, or half of the target class for clean-label attacks."""
    return {
        "input-aware": {
            "name": "input_aware",
            "mask_epochs": max(1, epochs // 4),
            "generator_epochs": epochs,
        },
        # A surrogate trained adversarially, as by default, would cost as much as eight victims.
        "clean-label": {
            "name": "clean_label",
            "poisoning_rate": 0.5,
            "surrogate_adversarial": False,
            "surrogate_epochs": max(1, epochs // 2),
        },
        "BadNets": {"name": "badnets"},
        "Blend": {"name": "blend"},
        "SIG": {"name": "sig", "poisoning_rate": 0.5},
        "WaNet": {"name": "wanet"},
        NO_ATTACK: {"name": "none"},
    }[title]


def defense(name: str, epochs: int) -> dict[str, Any]:
    """The defaults, shortened: about half a victim's training for auxiliary models, all of it for the final one."""
    isolation = max(4, 3 * epochs // 4)
    ranking = {"isolation_epochs": isolation, "ranking_window": isolation // 2}
    lengths: dict[str, dict[str, Any]] = {
        "abl": {**ranking, "finetune_epochs": epochs, "unlearning_epochs": 2},
        "abl_plus": {},
        "anp": {"steps": 500},
    }
    return {"name": name, **lengths.get(name, {})}


def spec(title: str, defenses: tuple[str, ...], epochs: int) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "dataset": {"name": "cifar10"},
            "model": {"name": "resnet18"},
            "attack": attack(title, epochs),
            "defenses": [defense(name, epochs) for name in defenses],
            "training": {
                "epochs": epochs,
                "batch_size": 256,
                "learning_rate": 0.2,
                "schedule": "one_cycle",
            },
        }
    )


class Cells(FolderRecorder):
    """Appends every arm's numbers to ``cells.jsonl`` as soon as they are known; stores no model and no figure."""

    def __init__(self, folder: Path, cells: Path, title: str) -> None:
        super().__init__(folder)
        self.cells, self.title = cells, title
        self.began = time.monotonic()
        self.beliefs: dict[str, Any] = {}

    def artifact(self, scope: Scope, name: str, kind: Any, *rest: Any) -> None:
        if name.endswith("belief.json"):
            self.beliefs[str(scope.arm)] = json.loads(rest[1])

    def result(self, scope: Scope, values: dict[str, float | None]) -> None:
        super().result(scope, values)
        line = {
            "attack": self.title,
            "arm": scope.arm,
            "values": values,
            "belief": self.beliefs.get(str(scope.arm)),
            "warnings": [note["warning"] for note in self.notes if note["arm"] == scope.arm],
        }
        # One write of a short line, so lines of several processes do not mix.
        with self.cells.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log(self, message: str) -> None:
        super().log(f"{time.monotonic() - self.began:6.1f} s  {message}")


def work(options: argparse.Namespace, title: str, defenses: tuple[str, ...]) -> None:
    """Run one task. A failure is logged, and the others continue."""
    torch.set_num_threads(1)
    recorder = Cells(
        options.out / f"{title.replace(' ', '-')}-{'-'.join(defenses)}", options.out / "cells.jsonl", title
    )
    try:
        run_experiment(
            spec(title, defenses, options.epochs),
            recorder,
            FolderStore(options.out / "stages"),
            data_dir=options.data,
            device="cuda",
            checkpoint_seconds=1e9,
        )
    except Exception:
        recorder.log(traceback.format_exc())
        print(f"{title}, {defenses}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    finally:
        recorder.close()
    print(f"{title}, {', '.join(defenses)}: {time.monotonic() - recorder.began:.0f} s", flush=True)


def compute(options: argparse.Namespace) -> int:
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes) as pool:  # leaving the block ends unfinished tasks
        tasks = [
            pool.apply_async(work, (options, title, task)) for title in options.attacks for task in TASKS
        ]
        for task in tasks:
            task.wait(max(0.0, options.minutes * 60 - (time.monotonic() - began)))
        unfinished = sum(not task.ready() for task in tasks)
    facts = {
        **making([0]),
        "device": torch.cuda.get_device_name(),
        "epochs": options.epochs,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "unfinished": unfinished,
        "processes": options.processes,
    }
    (options.out / "run.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts))
    return 0


INTRODUCTION = """# ResNet-18 on all of CIFAR-10, on a GPU

Clean accuracy and attack success rate of attacks x defenses with shortened training. Measured with
`python benchmarks/cifar10_gpu.py run OUT --epochs {epochs} --minutes {minutes} --processes {processes}`
on {date}: {device}, Python {python}, torch {torch}. 50,000 training and 10,000 test images, `resnet18`,
bfloat16, seed 0. Poisoning rate 0.1; SIG and clean-label poison half of the target class. {unfinished} of the tasks had
not finished when time was up.

**All training is far shorter than the defaults.** A victim trains {epochs} epochs (one cycle, peak 0.2, batches of
256); `abl` ranks for {isolation} epochs, trains {epochs} and unlearns 2; `abl_plus` trains {epochs} epochs four times
at most and unlearns 2. Repairs have 2,500 clean images; ANP takes 500 steps, the others their defaults.
The input-aware generator trains {epochs} epochs, and the clean-label attack's surrogate is trained without adversarial
examples. So these figures cannot be compared with published ones of 60 to 200 epochs; they compare the methods under
equal conditions.

Each cell: clean accuracy / attack success rate, in percent; a dash: not finished in time.
"""


def page(options: argparse.Namespace) -> int:
    facts = json.loads((options.out / "run.json").read_text())
    lines = [json.loads(line) for line in (options.out / "cells.jsonl").read_text().splitlines()]
    cells = {(line["attack"], line["arm"]): line for line in lines}
    head = INTRODUCTION.format(**facts, isolation=defense("abl", facts["epochs"])["isolation_epochs"])
    columns = [title for title in SHOWN if title in {line["attack"] for line in lines}]
    out = [head, "| model | " + " | ".join(columns) + " | mean DER |", "|---" * (len(columns) + 2) + "|"]
    attacked = [title for title in columns if title != NO_ATTACK]
    there = {arm for _, arm in cells}
    for arm in (UNDEFENDED, *(name for name in (*TRAINING, *REPAIR) if name in there)):
        row = [
            number(cells.get((t, "clean" if (t, arm) == (NO_ATTACK, UNDEFENDED) else arm))) for t in columns
        ]
        rows = ((cells.get((t, UNDEFENDED)), cells.get((t, arm))) for t in attacked if arm != UNDEFENDED)
        rated = [defense_effectiveness(a["values"], b["values"]) for a, b in rows if a and b]
        ratings = [rating for rating in rated if rating is not None]
        mean = f"{statistics.fmean(ratings):.3f}" if ratings else ""
        out.append(f"| {arm} | " + " | ".join(row) + f" | {mean} |")
    out += [
        "",
        "DER, the defense effectiveness rating, is (max(0, drop of attack success) - max(0, drop of accuracy) + 1) "
        "/ 2, here the mean over the attacks whose cell is finished.",
        "",
        "Isolated samples: precision / recall, and AUROC of the ranking against the truth. "
        "`found` are the classes in which `abl_plus` finds poison; the target is class 0.",
        "",
        "| defense | " + " | ".join(attacked) + " |",
        "|---" * (len(attacked) + 1) + "|",
    ]
    for arm in [name for name in TRAINING if name in there]:
        out.append(f"| {arm} | " + " | ".join(found(cells.get((t, arm))) for t in attacked) + " |")
    if "abl_plus" in there:
        accused = {t: belief(cells.get((t, "abl_plus"))) for t in (*attacked, NO_ATTACK)}
        out += ["| found | " + " | ".join(accused[t] for t in attacked) + " |", ""]
        out += [f"On clean data `abl_plus` finds: {accused[NO_ATTACK]}."]
    out += ["", "Warnings of the defenses, which do not use the truth:", ""]
    for (title, arm), line in sorted(cells.items()):
        out += [f"- {title}, {arm}: {warning}" for warning in line["warnings"]]
    TABLE.write_text("\n".join(out) + "\n")
    print(TABLE.read_text())
    return 0


def number(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    clean, attack = (cell["values"][name] for name in ("clean_accuracy", "attack_success_rate"))
    return f"{100 * clean:.1f}" if attack is None else f"{100 * clean:.1f} / {100 * attack:.1f}"


def found(cell: dict[str, Any] | None) -> str:
    if cell is None or "isolation_auroc" not in cell["values"]:
        return "-"
    precision, recall, auroc = (cell["values"][f"isolation_{n}"] for n in ("precision", "recall", "auroc"))
    return f"{precision:.2f} / {recall:.2f}, {auroc:.3f}"


def belief(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["belief"] is None:
        return "-"
    believes = cell["belief"]["believes"]
    return ", ".join(map(str, believes["target_classes"])) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run attacks x defenses on all of CIFAR-10, on a GPU.")
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--data", type=Path, default=ROOT / "var" / "data", help="folder of datasets")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time")
    options = parser.parse_args()
    if options.what == "run" and not torch.cuda.is_available():
        parser.error("run: requires a GPU")
    return compute(options) if options.what == "run" else page(options)


if __name__ == "__main__":
    sys.exit(main())
