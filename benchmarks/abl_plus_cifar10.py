"""`abl_plus` on 10,000 images of CIFAR-10, and on clean ones.

``python benchmarks/abl_plus_cifar10.py`` writes docs/results/abl-plus-cifar10.md, row by row; some five minutes a cell
on one idle core that has bfloat16. CIFAR-10 must be under var/data (`make data` or `bdlab data fetch cifar10`).
Finished stages are kept under var/, so a second run only makes the table.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from abl_plus_digits import cells
from attacks_cifar10 import DATA_DIR, DATASET, EPOCHS, ROOT, WORK

from app.specs.experiment import ExperimentSpec

TABLE = ROOT / "docs" / "results" / "abl-plus-cifar10.md"
CELLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("badnets", {}),
    ("blend", {}),
    ("sig", {"poisoning_rate": 0.5}),
)
HEAD = """# ABL with a second opinion, on 10,000 images of CIFAR-10

Made by `python benchmarks/abl_plus_cifar10.py` on {date}: {processor}, one thread, Python {python}, torch {torch}.
10,000 training images (class proportions kept) and all 10,000 test images; `small_cnn`; {epochs} epochs in bfloat16,
the rest of the recipe and `abl_plus` at their defaults. Attacks at their defaults; SIG is clean-label and poisons half
of its class. Seeds {seeds}, one after the other in each cell, in percent.

`accused` is the class that the defense accuses (the target is class 0; `-`: none), `AUROC` that of its ranking.

| attack | clean accuracy before | after | attack success before | after | accused | AUROC |
|---|---|---|---|---|---|---|
"""

NOTES = """
How a model is kept off what was isolated was tuned on 2026-11-26 on seeds 10 and 11 with other targets and rates (in
the heads), clean accuracy / attack success in percent. The last row is the default:

| the isolated | BadNets to 3, 0.08 | BadNets to 5, 0.1 | the same, 30 % missed | Blend to 7, 0.08 | SIG to 4, 0.4 |
|---|---|---|---|---|---|
| nothing done (undefended) | 63.0 / 100.0 | 61.5 / 100.0 | 61.5 / 100.0 | 62.6 / 99.9 | 62.9 / 89.4 |
| left out | 63.6 / 6.3 | 63.4 / 4.2 | - | 63.6 / 0.3 | 61.5 / 2.9 |
| kept off by -log(1 - p) | 63.5 / 5.0 | 63.2 / 3.0 | - | - | - |
| all kept off by a margin | 63.3 / 0.2 | 63.2 / 0.2 | 63.0 / 4.6 | 62.5 / 0.1 | 61.2 / 0.0 |
| surest half kept off, the other left out | - | 63.2 / 0.0 | 62.9 / 1.6 | 63.4 / 0.0 | 63.1 / 0.0 |

("The same, 30 % missed": as many of the isolated, at random, were put back among the rest. The margin was on the
cross-entropy in the first column, on the log-odds in the others.) Isolation had recall 1.000, 0.985, 0.999 and 0.970
there and precision 0.991, 0.998, 0.683 and 0.997.

Left out is what this page had before: with all poison found the model still took for the target class what it confuses
with it, with and without a patch, and where some was missed (seed 2 of BadNets) it learned the backdoor. That left 5.1,
7.0 and 10.0 % of BadNets on seeds 0, 1, 2, the last at 58.5 % accuracy.

What accuses a class was tuned on seed 10 with other targets and rates (BadNets and Blend 0.08, SIG 0.4 of its class).
There, separability of speed and dominance was 0.84 and 0.85 in classes poisoned by SIG and BadNets, 0.73 in an easy one
poisoned by Blend, and at most 0.71 in 37 clean ones. Three rules were changed later (excess in both heads, variety,
whom to believe: abl-plus-digits.md).

Two rules were added after a table of these seeds, because of seed 2 of BadNets. The two models that split an accused
class did not agree there: of the poison the first found 99.1 % with precision 0.945, the second, which had not learned
in time what parts the two, 56.1 % with 0.759, and the second was asked. Now it is the one whose answers are more
separable. On tuning seeds (BadNets to 2, 4 and 8 at 0.1, seeds 12, 13, 15; SIG to 4, 0.4, seed 10; Blend to 7, 0.08,
seed 11) that was the better one each time, with precision and recall of 0.978 to 1.000, and all but once the first.
And a model that knows 2 % less of the classes not accused than the scout is trained once more: seed 2 had 58.9 %
accuracy without that.

Accuracy on seed 2 of BadNets is what it costs to learn without its poison, and luck: with the same 1,049 images left
out two orders of training gave 61.9 and 62.0 % (attack success 6.0 and 6.0), with half of them kept off the label four
gave 58.9, 60.1, 61.0 and 62.1 (1.5, 1.4, 0.2 and 1.0); on seed 1 three orders gave 62.3, 62.6 and 63.4. Keeping off
later, less, or with growing weight did no better (59.7 to 62.1).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Table of abl_plus on part of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    text = HEAD.format(
        **making(seeds),
        epochs=EPOCHS,
    )
    for name, fields in CELLS:
        spec = ExperimentSpec.model_validate(
            {
                "dataset": DATASET,
                "attack": {"name": name} | fields,
                "training": {"epochs": EPOCHS, "precision": "bfloat16"},
                "defenses": [{"name": "abl_plus"}],
                "seeds": seeds,
            }
        )
        text += cells(name, fields, spec, WORK, DATA_DIR)
        print(f"{name}: done", file=sys.stderr)
        TABLE.write_text(text + NOTES)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
