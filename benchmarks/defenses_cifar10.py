"""Every defense at its defaults on 10,000 images of CIFAR-10, `abl_plus` and two presets of `abl` included.

``python benchmarks/defenses_cifar10.py`` writes docs/results/defenses-cifar10.md, attack by attack; about twenty
minutes per attack and seed on one idle core that supports bfloat16. CIFAR-10 must be under var/data (`make data` or
`bdlab data fetch cifar10`). Finished stages are cached together with those of the other benchmarks on this dataset, so
victims and `abl_plus` are reused if abl_plus_cifar10.py was run before.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from attacks_cifar10 import DATA_DIR, DATASET, ROOT, TRAINING, WORK
from defenses_digits import DEFENSES, Results, arms, write

TABLE = ROOT / "docs" / "results" / "defenses-cifar10.md"
ATTACKS: dict[str, dict[str, Any]] = {
    "BadNets": {"name": "badnets"},
    "Blend": {"name": "blend"},
    "SIG": {"name": "sig", "poisoning_rate": 0.5},
    "no attack": {"name": "none"},
}
ABL: tuple[dict[str, Any], ...] = (
    {"name": "abl"},
    {"name": "abl", "preset": "paper", "arm": "abl-paper"},
    {"name": "abl_plus"},
)
INTRODUCTION = """# Defenses on 10,000 images of CIFAR-10

Every defense at its defaults, and ABL with its paper's setting. Measured with `python benchmarks/defenses_cifar10.py`
on {date}: {processor}, one thread, Python {python}, torch {torch}. 10,000 training images (class proportions kept) and
all 10,000 test images; `small_cnn`; 20 epochs in bfloat16. Attacks at their defaults; SIG is clean-label and poisons
half of its class. The clean set of the defenses that require one is 5 % of the training set: 500 images.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of defenses on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results: Results = {title: [] for title in ATTACKS}
    for seed in seeds:
        for title, attack in ATTACKS.items():
            spec = {
                "dataset": DATASET,
                "attack": attack,
                "training": TRAINING,
                "seeds": [seed],
                "defenses": [*ABL, *({"name": name} for name in DEFENSES)],
            }
            results[title].append(arms(spec, WORK, DATA_DIR))
            print(f"seed {seed}, {title}: done", file=sys.stderr)
            write(TABLE, INTRODUCTION, seeds, results)
    print(TABLE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
