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
    ("badnets", {}),
    ("none", {}),
    ("sig", {"poisoning_rate": 0.5}),
    ("blend", {}),
    ("wanet", {}),
    ("badnets", {"label_mode": "all_to_all"}),
)
HEAD = """# abl_plus on 10,000 images of CIFAR-10

Clean accuracy and attack success rate before and after the defense `abl_plus`, which is described in
[defenses/training.md](../defenses/training.md#abl_plus). Measured with
`python benchmarks/abl_plus_cifar10.py` on {date}: {processor},
one thread, Python {python}, torch {torch}. 10,000 training images (class proportions kept) and all 10,000 test images;
`small_cnn`; {epochs} epochs in bfloat16, the rest of the recipe and `abl_plus` at their defaults. Attacks at their
defaults; SIG is clean-label and poisons half of its class. Each cell has seeds {seeds} in this order, in percent.

`found`: the classes in which the defense finds poison (the target is class 0; `-`: none). `AUROC`: that of its ranking.
`decoys`: how many of the decoys in other classes it would have noticed, in all seeds.
Rules and constants were set on digits (seeds 100 to 103, target classes 0, 3 and 5); that classes are divided, and SIG,
were looked at on target class 5 here, seed 100. Seen here before the sides of a class were weighed as they are now: by
claims alone SIG's clean side was accused.

| attack | clean accuracy before | after | attack success before | after | found | AUROC | decoys |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
WaNet, which takes hold only in part here, is not found: no sign divides its class. All five decoys would have been
noticed in that set, a warp among them: the attacker's trigger need not be like a decoy. In the all-to-all set the
poison of all ten classes is found; neither side of nine of them explains the other. The accuracy falls by 2 points
there, where a tenth of the images is left out or trained on against its label.

On seed 100, with SIG on class 5, a clean class is accused as well: half of its images dominate the other half, with a
probability of 0.98, more than the poison of SIG does with 0.91. Accuracy and attack success go from 72.0 / 85.5 to
66.3 / 0.0.

Not measured: seeds 1 and 2, other rates, GTSRB, and all of CIFAR-10.
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
        TABLE.write_text(text)
    text += NOTES
    TABLE.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
