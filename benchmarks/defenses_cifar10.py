"""Every defense at its defaults on 10,000 images of CIFAR-10, including `abl_plus` and two presets of `abl`.

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
from _heading import making
from attacks_cifar10 import DATA_DIR, DATASET, EPOCHS, ROOT, WORK
from defenses_digits import BY_SAMPLE, DEFENSES, Results, arms, write

TABLE = ROOT / "docs" / "results" / "defenses-cifar10.md"
ATTACKS: dict[str, dict[str, Any]] = {
    "BadNets": {"name": "badnets"},
    "Blend": {"name": "blend"},
    "SIG": {"name": "sig", "poisoning_rate": 0.5},
    "no attack": {"name": "none"},
}
ABL: tuple[dict[str, Any], ...] = (
    {"name": "abl_plus"},
    {"name": "abl"},
    {"name": "abl", "preset": "paper", "arm": "abl-paper"},
)
ABL_ARMS = [given.get("arm", given["name"]) for given in ABL]
INTRODUCTION = """# Defenses on 10,000 images of CIFAR-10

Accuracy and remaining attack success of every defense at its defaults. Measured with
`python benchmarks/defenses_cifar10.py` on {date}: {processor}, one thread, Python {python}, torch {torch}.
10,000 training images (class proportions kept) and all 10,000 test images; `small_cnn`; {epochs} epochs in bfloat16,
seeds {seeds}. Each cell is the mean of clean accuracy / attack success rate, in percent; on clean data only the
accuracy. Attacks at their defaults; SIG is clean-label and poisons half of its class. In parentheses: the number of
seeds for which the defense itself warned, without using the truth. `abl-paper` has the paper's schedule, whose
unlearning has no lower bound.

The clean set of the defenses that require one is 5 % of the training set: 500 images, of which 100 are held out.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the table of defenses on a subset of CIFAR-10.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    introduction = INTRODUCTION.format(
        **making(seeds),
        epochs=EPOCHS,
    )
    results: Results = {}
    for title, attack in ATTACKS.items():
        results[title] = [
            arms(
                {
                    "dataset": DATASET,
                    "attack": attack,
                    "training": {"epochs": EPOCHS, "precision": "bfloat16"},
                    "seeds": [seed],
                    "defenses": [*ABL, *({"name": name} for name in DEFENSES)],
                },
                WORK,
                DATA_DIR,
            )
            for seed in seeds
        ]
        print(f"{title}: done", file=sys.stderr)
        write(TABLE, introduction, [*ABL_ARMS, *DEFENSES], [*ABL_ARMS, *BY_SAMPLE], results)
    print(TABLE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
