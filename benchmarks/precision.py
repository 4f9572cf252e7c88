"""float32 beside bfloat16 for every attack, undefended: clean accuracy, attack success, and seconds of training.

``python benchmarks/precision.py`` writes docs/results/precision.md, on a processor with native bfloat16; some hours on
one core. It is why ``precision: auto`` chooses bfloat16 on such processors. CIFAR-10 must be under var/data. It can be
interrupted: the numbers of finished attacks are in docs/results/precision.jsonl, stages under var/.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from _numbers import Numbers

from app.data.catalog import service as catalog
from app.specs.experiment import ExperimentSpec
from app.specs.metrics import format_interval, summarize
from app.specs.stages import LAB_VERSION
from worker.lab.compute import has_native_bfloat16
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "results" / "precision.md"
NUMBERS = Numbers(TABLE)
WORK = ROOT / "var" / "precision"
DATA_DIR = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
PRECISIONS = ("float32", "bfloat16")
METRICS = ("clean_accuracy", "attack_success_rate")
DATASET = {"name": "cifar10", "train_size": 5_000, "test_size": 2_500}
TRAINING: dict[str, Any] = {"epochs": 10}
CHANGED: dict[str, dict[str, Any]] = {
    "clean_label": {"surrogate_epochs": 5, "poisoning_rate": 0.5},
    "hidden_trigger": {"size": 12, "poisoning_rate": 1.0, "surrogate_epochs": 15, "craft_steps": 50},
    "input_aware": {"mask_epochs": 2, "generator_epochs": 8},
    "narcissus": {"surrogate_epochs": 10, "pattern_steps": 500, "poisoning_rate": 0.002},
    "sig": {"poisoning_rate": 0.5},
    "sleeper_agent": {"surrogate_epochs": 10, "craft_retrainings": 0, "poisoning_rate": 0.05},
}
"""Fields that differ from the defaults: what carries an attack on a tenth of the set, or shortens its preparation."""
SKIPPED = {
    "given": "it has no set of its own",
    "poison_frogs": "its success is 0 or 1, for one image",
    "witches_brew": "its success is 0 or 1, for one image",
}
NAMES = [name for name in catalog.names("attack") if name not in SKIPPED and name != "none"]
HEAD = """# Precision: float32 beside bfloat16

Whether `precision: auto` may choose bfloat16 on processors that have its arithmetic (AVX512_BF16, AMX). Measured with
`python benchmarks/precision.py`, the last row on {date}: {processor}, one thread, Python {python}, torch {torch}; the
numbers are in [precision.jsonl](precision.jsonl). 5,000 training and 2,500 test images of CIFAR-10, `small_cnn`, 10
epochs, undefended, seeds {seeds}. Percent, means over the seeds; the difference is bfloat16 - float32 at equal seeds,
with half the width of its 95 % Student t interval. Runs that differ only in rounding diverge within some hundred steps,
as those of two seeds do; the question is whether the difference is zero on average.

| attack | changed fields | clean accuracy, f32 | bf16 | difference | attack success, f32 | bf16 | difference |
|---|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare float32 with bfloat16 for every attack.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", default=NAMES)
    options = parser.parse_args()
    if not has_native_bfloat16():
        sys.exit("This processor has no bfloat16 arithmetic; torch would emulate it.")
    torch.set_num_threads(1)
    for name in options.attacks:
        if NUMBERS.find(name) is None:
            runs = {precision: run(name, precision, options.seeds) for precision in PRECISIONS}
            NUMBERS.store(
                name, {"made": making(options.seeds), "lab_version": LAB_VERSION} | summarize_runs(runs)
            )
            TABLE.write_text(page())
        print(line(name, NUMBERS.read()[name]), file=sys.stderr, flush=True)
    return 0


def run(name: str, precision: str, seeds: list[int]) -> list[dict[str, Any]]:
    """The undefended arm of each seed."""
    fine_tuned = {"start": "surrogate"} if name == "hidden_trigger" else {}
    spec = ExperimentSpec.model_validate(
        {
            "dataset": DATASET,
            "attack": {"name": name} | CHANGED.get(name, {}),
            "training": TRAINING | fine_tuned | {"precision": precision},
            "seeds": seeds,
        }
    )
    recorder = FolderRecorder(WORK / spec.spec_hash[:12])
    began = time.process_time()
    try:
        answer = run_experiment(spec, recorder, FolderStore(WORK / "stages"), data_dir=DATA_DIR, device="cpu")
    finally:
        recorder.close()
    print(f"{name}, {precision}: {time.process_time() - began:.0f} CPU s", file=sys.stderr, flush=True)
    seeds_of_arm: list[dict[str, Any]] = answer["arms"][0]["seeds"]
    return seeds_of_arm


def summarize_runs(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of each metric, in percent: the values of every precision, and of the difference mean, low and high."""
    document: dict[str, Any] = {}
    for metric in METRICS:
        both = {precision: [100 * seed[metric] for seed in seeds] for precision, seeds in runs.items()}
        difference = summarize(half - full for full, half in zip(*both.values(), strict=True))
        assert difference is not None
        document[metric] = both | {"difference": [difference[key] for key in ("mean", "low", "high")]}
    return document


def line(name: str, document: dict[str, Any]) -> str:
    """The table's row of an attack."""
    changed = ", ".join(f"{key} {value}" for key, value in CHANGED.get(name, {}).items()) or "none"
    cells = [name, changed]
    for metric in METRICS:
        values = document[metric]
        cells += [f"{mean(values[precision]):.1f}" for precision in PRECISIONS]
        cells.append(format_interval(*values["difference"], scale=1))
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The page of all attacks that are finished."""
    found = NUMBERS.read()
    made = max((document["made"] for document in found.values()), key=lambda made: made["date"])
    skipped = "\n".join(f"`{name}` is left out: {reason}." for name, reason in SKIPPED.items())
    lines = "\n".join(line(name, found[name]) for name in NAMES if name in found)
    missing = ", ".join(name for name in NAMES if name not in found)
    rest = f"Not measured yet: {missing}.\n\n" if missing else ""
    return f"{HEAD.format(**made)}{lines}\n\n{rest}{skipped}\n"


if __name__ == "__main__":
    sys.exit(main())
