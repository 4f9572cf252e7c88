"""Why ABL's isolation finds one attack's poison and not another's: losses of poison and of clean samples by epoch.

``python benchmarks/abl_why.py`` writes docs/results/abl-why.md and its figures; about an hour on one idle core. 10,000
images of CIFAR-10, `small_cnn`, seed 0. The truth about the samples is used here, and never by the defense. Finished
runs are kept under var/abl-why.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making

from app.specs.experiment import ExperimentSpec
from worker.lab.data.datasets import load_dataset
from worker.lab.defenses import abl
from worker.lab.defenses.abl import lowest_ranked, smoothed_ranks
from worker.lab.evaluation import auroc
from worker.lab.experiment import run_experiment
from worker.lab.figures.style import BAD, GOOD, MUTED, new_figure, render_png
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "abl-why.md"
IMAGES = ROOT / "docs" / "images" / "abl-why"
WORK = ROOT / "var" / "abl-why"
DATA_DIR = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
DATASET = {"name": "cifar10", "train_size": 10_000}
ISOLATION = {"isolation_epochs": 20, "finetune_epochs": 0, "unlearning_epochs": 0}
WINDOW, SHARE = 12, 0.01
PRECISE = 0.95
"""Precision that counts as found, in the column of epochs."""
Floats = NDArray[np.float32]


class Case(NamedTuple):
    """An attack, and the fields of the isolation that differ from `abl`'s defaults."""

    title: str
    attack: dict[str, Any]
    isolation: Mapping[str, Any] = MappingProxyType({})


DYNAMIC = {"name": "input_aware", "mask_epochs": 5, "generator_epochs": 15}
PLAIN = {"gamma": 0.0}
CASES = (
    Case("badnets", {"name": "badnets"}),
    Case("badnets, no ascent", {"name": "badnets"}, PLAIN),
    Case("blend, alpha 0.05", {"name": "blend", "alpha": 0.05}),
    Case("blend, alpha 0.1", {"name": "blend", "alpha": 0.1}),
    Case("blend, alpha 0.2", {"name": "blend", "alpha": 0.2}),
    Case("blend, alpha 0.4", {"name": "blend", "alpha": 0.4}),
    Case("blend, alpha 0.1, no ascent", {"name": "blend", "alpha": 0.1}, PLAIN),
    Case("sig", {"name": "sig"}),
    Case("wanet", {"name": "wanet"}),
    Case("input_aware", DYNAMIC),
    Case("input_aware, no ascent", DYNAMIC, PLAIN),
    Case("input_aware, a tenth of the cross samples", {**DYNAMIC, "cross_rate": 0.01}),
)


SHOWN = ("badnets", "blend, alpha 0.1", "blend, alpha 0.2", "sig", "wanet", "input_aware")
HEAD = """# Why ABL isolates the poison of some attacks and not of others

ABL isolates the samples that are learned first. Measured with `python benchmarks/abl_why.py` on {date}: {processor},
one thread, Python {python}, torch {torch}; 10,000 images of CIFAR-10, `small_cnn`, seed {seeds}, 20 epochs of isolation
by `abl`'s defaults (local gradient ascent on the batch mean, gamma 0.5, learning rate 0.01), attacks at their defaults
but for what the first column says. "No ascent" trains with gamma 0, that is, as usual.

Precisions are in percent. The losses are means of the poison / of the clean samples with the same label; "lowest
tenth" is the loss below which a tenth of the poison / of all clean samples is after 20 epochs. AUROC and precision
at 1 % are of ranks that are averaged over the last twelve epochs, "in class" is the AUROC among the samples with
the target label. "Last epoch" has the precision by that epoch's losses alone, and "epochs" in how many single
epochs it would be 95 % or more. The last column says which class most of the clean samples that are isolated belong
to.

| attack | losses, epoch 1 | epoch 5 | 20 | lowest tenth | AUROC | in class | precision | last epoch | epochs | clean |
|---|---|---|---|---|---|---|---|---|---|---|
"""
NOTES = """
![Losses of poison and of clean samples with the same label, by epoch](../images/abl-why/losses.png)

*Median and middle 80 % of the losses after each epoch. Dotted: gamma.*

## Blend

ABL isolates what is learned first, so a trigger must be learned before the easiest clean images are. For Blend that
is a question of alpha, the visibility of the pattern:

- At 0.2 (the default here) and 0.4 the pattern is learned in the first epoch, and all isolated samples are poison.
- At 0.1 it is learned between the first and the fifth epoch. Before, poison is only mislabeled images, with the
  higher loss. An isolation that ends there takes clean samples; after 20 epochs it takes poison.
- At 0.05 it is not learned in 20 epochs: poison stays mislabeled, its loss rises, and the ranking is reversed. What
  ABL isolates is clean, almost half of it one easy class, and unlearning it would harm that class and no backdoor.

The ranks of a single epoch are not dependable even where the trigger is learned: in 6 to 11 of 20 epochs fewer than
95 % of the lowest are poison. Averaging ranks over twelve epochs, which is the preset `steady` and not the paper,
makes up for that (at alpha 0.4, 36 % become 100 %). The local gradient ascent changes little here: without it the
average is as good. So the paper's isolation, by the last epoch alone, can fail on Blend by chance even where the
trigger is strong; whether unlearning fails for other reasons was not measured here.

## The input-aware attack

The mean loss of its poison is below that of the clean images of its class in 17 of 20 epochs, and yet none of the
isolated samples is poison. The mean misleads: the poison's loss is never as low as that of the easiest clean
images. After 20 epochs a tenth of all clean samples is below 0.03, a tenth of the poison below 0.09, and isolation
takes the lowest 1 %. The poison has fewer hard samples, which lowers its mean. In its own class the ranks say
nothing (AUROC 0.51).

Two properties of the attack may explain it; they are not separated here. Every image has a trigger of its own, so
the model cannot fit all poison by one feature within a few steps, as it does for a patch. And the cross samples
carry triggers of other images under their own labels, so the model must not trust a trigger alone. The command also
measures a tenth of the cross samples; that run was not finished for this page.

SIG and WaNet fail for other reasons. SIG's clean-label poison, a tenth of its class, is learned late: at the end
its loss is below that of its class, but easy images of other classes are lower still. WaNet's poison has the higher
loss in every epoch, so the end of the ranking that ABL does not look at holds more of it: within its class, the
AUROC from that end is 0.785.

One seed, one network, a fifth of CIFAR-10: the mechanisms carry over, the numbers need not.
"""


class Run(NamedTuple):
    """What one isolation did: losses ``[epochs, N]``, flags ``[N]``, labels ``[N]``, and the target class."""

    losses: Floats
    poisoned: NDArray[np.bool_]
    labels: NDArray[np.int64]
    target: int


@contextmanager
def recorded_losses() -> Iterator[list[Tensor]]:
    """Every sample's loss after every epoch of isolation, which computes them to rank the samples."""
    kept: list[Tensor] = []
    really = abl.sample_losses

    def keep(*arguments: Any) -> Tensor:
        losses = really(*arguments)
        kept.append(losses.float().cpu().clone())
        return losses

    abl.sample_losses = keep
    try:
        yield kept
    finally:
        abl.sample_losses = really


def isolate(case: Case) -> Run:
    """Train the isolation stage of a case, or load what it did."""
    path = WORK / f"{case.title.replace(' ', '-').replace(',', '')}.npz"
    spec = ExperimentSpec.model_validate(
        {
            "dataset": DATASET,
            "attack": case.attack,
            "defenses": [{"name": "abl", **ISOLATION, **case.isolation}],
            "training": {"epochs": 1},  # of the victim, which is not looked at
            "reference": False,
        }
    )
    if not path.exists():
        recorder = FolderRecorder(WORK / spec.spec_hash[:12])
        try:
            with recorded_losses() as losses:
                run_experiment(spec, recorder, FolderStore(WORK / "stages"), data_dir=DATA_DIR, device="cpu")
        finally:
            recorder.close()
        folder = WORK / spec.spec_hash[:12] / "seed-0"
        poison = json.loads((folder / "poisoned_indices.json").read_text())
        np.savez(path, losses=torch.stack(losses).numpy(), poison=np.array(poison["indices"]))
    stored = np.load(path)
    labels = load_dataset(spec.dataset, DATA_DIR, 0).train.labels.numpy().copy()
    poisoned = np.zeros(len(labels), dtype=bool)
    poisoned[stored["poison"]] = True
    target = int(case.attack.get("target_class", 0))
    labels[poisoned] = target
    return Run(stored["losses"], poisoned, labels, target)


def precision(ranks: Tensor, poisoned: NDArray[np.bool_]) -> float:
    """Share of poison among the lowest-ranked samples, in percent."""
    return 100 * float(poisoned[lowest_ranked(ranks, SHARE).numpy()].mean())


def row(case: Case, run: Run) -> str:
    """The table row of a case."""
    losses = torch.from_numpy(run.losses)
    ranks = smoothed_ranks(list(losses[-WINDOW:]))
    by_epoch = [precision(smoothed_ranks([epoch]), run.poisoned) for epoch in losses]
    clean = ~run.poisoned & (run.labels == run.target)
    levels = [
        f"{run.losses[e - 1][run.poisoned].mean():.2f} / {run.losses[e - 1][clean].mean():.2f}"
        for e in (1, 5, 20)
    ]
    tenths = [np.quantile(run.losses[-1][rows], 0.1) for rows in (run.poisoned, ~run.poisoned)]
    same = run.labels == run.target
    isolated = lowest_ranked(ranks, SHARE).numpy()
    wrong = run.labels[isolated[~run.poisoned[isolated]]]
    cells = [
        case.title,
        *levels,
        f"{abs(tenths[0]):.3f} / {abs(tenths[1]):.3f}",
        f"{auroc(1 - ranks, torch.from_numpy(run.poisoned)):.3f}",
        f"{auroc(1 - ranks[same], torch.from_numpy(run.poisoned[same])):.3f}",
        f"{precision(ranks, run.poisoned):.0f}",
        f"{by_epoch[-1]:.0f}",
        f"{sum(p >= 100 * PRECISE for p in by_epoch)} of {len(by_epoch)}",
        f"{np.bincount(wrong).max() / len(wrong):.0%} of class {np.bincount(wrong).argmax()}"
        if len(wrong)
        else "-",
    ]
    return "| " + " | ".join(cells) + " |\n"


def draw_losses(runs: dict[str, Run]) -> bytes:
    """Losses by epoch: the median and the middle 80 % of the poison, and of the clean members of its class."""
    figure = new_figure(1100, 640)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for place, (title, run) in zip(axes.flat, runs.items(), strict=True):
        clean = ~run.poisoned & (run.labels == run.target)
        epochs = np.arange(1, len(run.losses) + 1)
        for rows, color, name in ((run.poisoned, BAD, "poison"), (clean, GOOD, "clean, same label")):
            low, middle, high = np.quantile(run.losses[:, rows], (0.1, 0.5, 0.9), axis=1)
            place.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
            place.plot(epochs, middle, color=color, label=name)
        place.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        place.set_title(title, fontsize=9)
        place.set_ylim(0, 3)
    for place in axes[-1]:
        place.set_xlabel("epoch of isolation")
    for place in axes[:, 0]:
        place.set_ylabel("loss, nats")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return render_png(figure)


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Run] = {}
    for case in CASES:
        runs[case.title] = isolate(case)
        print(row(case, runs[case.title]), end="", file=sys.stderr, flush=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / "losses.png").write_bytes(draw_losses({title: runs[title] for title in SHOWN}))
    table = "".join(row(case, runs[case.title]) for case in CASES)
    PAGE.write_text(HEAD.format(**making([0])) + table + NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
