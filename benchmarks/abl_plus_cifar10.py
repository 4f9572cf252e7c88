"""Accuracy and attack success of `abl_plus` on 10,000 images of CIFAR-10, poisoned and clean.

``python benchmarks/abl_plus_cifar10.py`` writes docs/results/abl-plus-cifar10.md, row by row; about five minutes per
cell on one idle core that supports bfloat16. CIFAR-10 must be under var/data (`make data` or `bdlab data fetch
cifar10`). Finished stages are cached under var/, so a second run only builds the table.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from abl_plus_digits import cells
from attacks_cifar10 import DATA_DIR, DATASET, ROOT, TRAINING, WORK

from app.specs.experiment import ExperimentSpec

TABLE = ROOT / "docs" / "results" / "abl-plus-cifar10.md"
CELLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("badnets", {}),
    ("blend", {}),
    ("sig", {"poisoning_rate": 0.5}),
)
HEAD = """# abl_plus on 10,000 images of CIFAR-10

Clean accuracy and attack success rate before and after the defense `abl_plus`, which is described in
[defenses/training.md](../defenses/training.md#abl_plus). Measured with
`python benchmarks/abl_plus_cifar10.py` on {date}: {processor},
one thread, Python {python}, torch {torch}. 10,000 training images (class proportions kept) and all 10,000 test images;
`small_cnn`; {epochs} epochs in bfloat16, the rest of the recipe and `abl_plus` at their defaults. Attacks at their
defaults; SIG is clean-label and poisons half of its class. Each cell has seeds {seeds} in this order, in percent.

`accused` is the class that the defense accuses (the target is class 0; `-`: none), `AUROC` that of its ranking.

| attack | clean accuracy before | after | attack success before | after | accused | AUROC |
|---|---|---|---|---|---|---|
"""

NOTES = """
## Treatment of the isolated samples

The treatment of isolated samples was tuned on 2026-11-26 on seeds 10 and 11 with other targets and rates (in the column
titles), clean accuracy / attack success in percent. The last row is the default:

| isolated samples | BadNets to 3, 0.08 | BadNets to 5, 0.1 | the same, 30 % missed | Blend to 7, 0.08 | SIG to 4, 0.4 |
|---|---|---|---|---|---|
| learned (undefended) | 63.0 / 100.0 | 61.5 / 100.0 | 61.5 / 100.0 | 62.6 / 99.9 | 62.9 / 89.4 |
| left out | 63.6 / 6.3 | 63.4 / 4.2 | - | 63.6 / 0.3 | 61.5 / 2.9 |
| penalized by -log(1 - p) | 63.5 / 5.0 | 63.2 / 3.0 | - | - | - |
| all penalized by a margin | 63.3 / 0.2 | 63.2 / 0.2 | 63.0 / 4.6 | 62.5 / 0.1 | 61.2 / 0.0 |
| surest half penalized by a margin, the other left out | - | 63.2 / 0.0 | 62.9 / 1.6 | 63.4 / 0.0 | 63.1 / 0.0 |

("The same, 30 % missed": 30 % of the isolated samples, chosen at random, were returned to the rest. The margin was on
the cross-entropy in the first column, on the log-odds in the others.) Isolation had recall 1.000, 0.985, 0.999 and
0.970 in these runs and precision 0.991, 0.998, 0.683 and 0.997.

An earlier version of this page left the isolated samples out. Even with all poison found, the model still confused some
images with the target class, with and without a patch, and where some was missed (seed 2 of BadNets) it learned the
backdoor. That left 5.1, 7.0 and 10.0 % attack success for BadNets on seeds 0, 1, 2, the last at 58.5 % accuracy.

## Tuning of the rules

The rules that accuse a class were tuned on seed 10 with other targets and rates (BadNets and Blend 0.08, SIG 0.4 of its
class). There, the bimodality of speed and dominance was 0.84 and 0.85 in classes poisoned by SIG and BadNets, 0.73 in
an easy class poisoned by Blend, and at most 0.71 in 37 clean ones. Three rules were changed later (excess in both
rankings, variety, when to use the sorting model: [abl-plus-digits](abl-plus-digits.md)).

Two rules were added after seeing a table of these seeds, because of seed 2 of BadNets. The two models that split an
accused class disagreed there: the first found 99.1 % of the poison with precision 0.945; the second, which had not
learned the distinction in time, 56.1 % with 0.759, and the second was used. Now the one whose predictions separate
better is used. On tuning seeds (BadNets to 2, 4 and 8 at 0.1, seeds 12, 13, 15; SIG to 4, 0.4, seed 10; Blend to 7,
0.08, seed 11) that was the better one each time, with precision and recall of 0.978 to 1.000, and all but once the
first. The second rule: a model whose accuracy on the classes not accused is 2 % lower than the scout's is trained once
more; seed 2 had 58.9 % accuracy without that.

The accuracy on seed 2 of BadNets is the cost of learning without its poison, plus chance: with the same 1,049 images
left out, two training orders gave 61.9 and 62.0 % (attack success 6.0 and 6.0); with half of them penalized, four gave
58.9, 60.1, 61.0 and 62.1 (1.5, 1.4, 0.2 and 1.0); on seed 1 three orders gave 62.3, 62.6 and 63.4. Penalizing later,
less, or with growing weight was not better (59.7 to 62.1).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of abl_plus on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    text = HEAD.format(
        **making(seeds),
        epochs=TRAINING["epochs"],
    )
    for name, fields in CELLS:
        spec = ExperimentSpec.model_validate(
            {
                "dataset": DATASET,
                "attack": {"name": name} | fields,
                "training": TRAINING,
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
