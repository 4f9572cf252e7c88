"""`abl_plus` on 10,000 images of CIFAR-10, and on clean ones.

``python benchmarks/abl_plus_cifar10.py`` writes docs/results/abl-plus-cifar10.md, row by row; some five minutes a cell
on one idle core that has bfloat16. CIFAR-10 must be under var/data (`make data` or `bdlab data fetch cifar10`).
Finished stages are kept under var/, so a second run only makes the table.
"""

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from abl_plus_digits import cells
from attacks_cifar10 import DATASET, EPOCHS, ROOT, WORK

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

`accused` is the class that the defence accuses (the target is class 0; `-`: none), `AUROC` that of its ranking.

| attack | clean accuracy before | after | attack success before | after | accused | AUROC |
|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Table of abl_plus on part of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    text = HEAD.format(
        date=datetime.date.today().isoformat(),
        processor=platform.processor() or platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        epochs=EPOCHS,
        seeds=", ".join(map(str, seeds)),
    )
    data_dir = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
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
        text += cells(name, fields, spec, WORK, data_dir)
        print(f"{name}: done", file=sys.stderr)
        TABLE.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
