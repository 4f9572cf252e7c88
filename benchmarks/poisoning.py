"""Time to stamp and to poison 50,000 CIFAR-10-sized images, for every attack that requires no training.

    python benchmarks/poisoning.py [--data FOLDER]

Uses CIFAR-10 from the data folder if it is there, otherwise random images of the same shape.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from worker.lab.attacks import Prepared, apply_trigger, make_attack
from worker.lab.attacks.poisoning import build_poisoned_set, make_poison
from worker.lab.contracts import DatasetMissingError
from worker.lab.data.datasets import Dataset, Split, load_dataset
from worker.lab.interactive import state_without_training

ATTACKS = ("badnets", "single_pixel", "blend", "sig", "low_frequency", "wanet", "refool", "clean_label")
TARGET_SECONDS = 2.0


def cifar10(folder: Path) -> tuple[Dataset, str]:
    """CIFAR-10 or random images of its shape, and a label that says which."""
    spec = ExperimentSpec.model_validate({"dataset": {"name": "cifar10"}})
    try:
        return load_dataset(spec.dataset, folder, 0), "CIFAR-10"
    except DatasetMissingError:
        facts = BUILT_IN["cifar10"]
        drawn = torch.Generator().manual_seed(0)
        train, test = (
            Split(
                torch.randint(256, (n, 3, 32, 32), generator=drawn, dtype=torch.uint8),
                torch.arange(n) % facts.classes,
            )
            for n in (facts.train_size, facts.test_size)
        )
        return Dataset(train, test, facts, "random"), "random images of CIFAR-10's shape"


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five runs; the slower ones include other load of the machine."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BDLAB_DATA_DIR", "var/data")))
    data, what = cifar10(parser.parse_args().data)
    processor = platform.processor() or platform.machine()
    print(f"{what}; {processor}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'attack':<15}{'stamp all 50,000, s':>22}{'poisoned set, s':>18}")
    for name in ATTACKS:
        spec = ExperimentSpec.model_validate({"dataset": {"name": "cifar10"}, "attack": {"name": name}})
        attack = make_attack(spec.attack, data.facts)
        assert attack is not None
        state = state_without_training(spec, data, attack, 0)
        trigger = attack.trigger(state)
        prepared = Prepared(state)
        stamped = best(lambda trigger=trigger: apply_trigger(trigger, data.train.images))
        poisoned = best(
            lambda spec=spec, attack=attack, prepared=prepared: build_poisoned_set(
                data.train, make_poison(spec, data, attack, prepared, 0)
            )
        )
        verdict = "" if max(stamped, poisoned) < TARGET_SECONDS else f"  over {TARGET_SECONDS:.0f} s"
        print(f"{name:<15}{stamped:>22.2f}{poisoned:>18.2f}{verdict}")


if __name__ == "__main__":
    main()
