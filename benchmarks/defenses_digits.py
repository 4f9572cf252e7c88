"""Every repair and detection defense, and NAB, at its defaults on digits: clean accuracy and attack success.

``python benchmarks/defenses_digits.py`` trains about 150 small models and writes docs/results/defenses-digits.md; half
an hour on one core. Finished stages are cached under var/, so a second run only builds the table.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making

from app.specs.experiment import ExperimentSpec
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "results" / "defenses-digits.md"
WORK = ROOT / "var" / "defenses-digits"
ATTACKS: dict[str, dict[str, Any]] = {
    "no attack": {"name": "none"},
    "BadNets": {"name": "badnets"},
    "Blend": {"name": "blend"},
    "SIG, dirty label": {"name": "sig", "clean_label": False, "rate_of": "training_set"},
}
REPAIR = ("fine_tuning", "fine_pruning", "nad", "mcr", "ft_sam", "anp", "i_bau")
DETECTION = ("spectral_signatures", "activation_clustering", "strip", "neural_cleanse")
TRAINING = ("nab",)
DEFENSES = (*REPAIR, *DETECTION, *TRAINING)
COLUMNS = {
    "clean accuracy": "clean_accuracy",
    "attack success": "attack_success_rate",
    "robust accuracy": "robust_accuracy",
    "DER": "defense_effectiveness",
    "precision": "isolation_precision",
    "recall": "isolation_recall",
    "false positives": "false_positive_rate",
}
"""Columns of the tables, and their metrics: in percent, but for the rating."""
Results = dict[str, list[dict[str, dict[str, Any]]]]
"""The numbers of each arm, by attack and seed."""
INTRODUCTION = """# Defenses on digits

Every repair and detection defense, and NAB, at their defaults. Measured with `python benchmarks/defenses_digits.py` on
{date}: {processor}, one thread, Python {python}, torch {torch}. 1,437 training images of 8x8, `small_cnn`, 30 epochs,
poisoning rate 0.1 of the training set. SIG relabels here, because its clean-label form does not work on 8x8 images
(attack success below 1 %). The clean set is 5 % of the training set: 72 images.
"""
LEGEND = """
Means over seeds {seeds}, in percent; [reading-numbers.md](../reading-numbers.md) explains the columns. The preset is in
parentheses. DER is the defense effectiveness rating: 0.5 is no effect, 1 a backdoor removed at no cost. Precision,
recall and false positives are those of the flagged or isolated samples; Neural Cleanse flags classes. `warned` counts
the seeds for which the defense itself warned, without using the truth.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of defenses on digits.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results: Results = {title: [] for title in ATTACKS}
    for seed in seeds:
        for title, attack in ATTACKS.items():
            spec = {"attack": attack, "seeds": [seed], "defenses": [{"name": name} for name in DEFENSES]}
            results[title].append(arms(spec, WORK, ROOT / "var" / "data"))
            print(f"seed {seed}, {title}: done", file=sys.stderr)
            write(TABLE, INTRODUCTION, seeds, results)
    print(TABLE.read_text())
    return 0


def arms(given: dict[str, Any], work: Path, data_dir: Path, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Run one experiment of one seed; return each arm's numbers, and its warnings under ``warnings``.

    Its stages are cached under ``work``.
    """
    spec = ExperimentSpec.model_validate(given)
    recorder = FolderRecorder(work / spec.spec_hash[:12])
    store = FolderStore(work / "stages")
    try:
        document = run_experiment(spec, recorder, store, data_dir=data_dir, device=device)
    finally:
        recorder.close()
    numbers = {arm["arm"]: dict(arm["seeds"][0]) for arm in document["arms"]}
    presets = {defense.arm or defense.name: getattr(defense, "preset", None) for defense in spec.defenses}
    for name, values in numbers.items():
        values["preset"] = presets.get(name)
        values["warnings"] = [note["warning"] for note in recorder.notes if note["arm"] == name]
    return numbers


def write(where: Path, introduction: str, seeds: Sequence[int], results: Results) -> None:
    """Write the page: one table for each attack, of the seeds that are done."""
    facts = making(seeds)
    parts = [introduction.format(**facts) + LEGEND.format(**facts)]
    parts += [table(title, rows) for title, rows in results.items() if rows]
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text("\n".join(parts))


def table(title: str, seeds: list[dict[str, dict[str, Any]]]) -> str:
    """The section of an attack: one row for each arm."""
    head = ["model", *COLUMNS, "warned"]
    lines = [f"## {title[0].upper()}{title[1:]}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, first in seeds[0].items():
        rows = [numbers[arm] for numbers in seeds]
        label = f"{arm} ({first['preset']})" if first["preset"] else arm
        cells = [mean(rows, metric) for metric in COLUMNS.values()]
        cells.append(str(sum(bool(row["warnings"]) for row in rows) or "-"))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean(rows: list[dict[str, Any]], metric: str) -> str:
    """The mean of the rows that have the metric; a dash if none has it."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    if not values:
        return "-"
    value = statistics.fmean(values)
    return f"{value:.2f}" if metric == "defense_effectiveness" else f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
