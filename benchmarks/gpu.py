"""Everything that a GPU is needed for, in one command: ``python benchmarks/gpu.py OUT``.

Images per second of the networks, seven arms with three seeds on all of CIFAR-10, the GPU's utilization meanwhile,
and the rows of fidelity.py with two networks. Requires a GPU, the lab and cifar10.safetensors in ``--data``. No step
begins after ``--minutes``; the same command goes on from there, since finished steps are kept in OUT. OUT/gpu.md is
written after every step.

``--device cpu --quick`` goes through all of it in seconds, on digits and without a GPU; its numbers mean nothing.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

sys.path.insert(0, str(Path(__file__).parent))
import fidelity
import gpu_training
from _heading import making
from defenses_digits import arms, mean

from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec
from worker.device import find_device
from worker.lab.local import write_atomically

DEFENSES = ("abl", "abl_plus", "fine_pruning", "nad", "anp", "i_bau")
SEEDS = (0, 1, 2)
NETWORKS = ("resnet18", "preact_resnet18", "wide_resnet_16_1")
FIDELITY_NETWORKS = ("preact_resnet18", "wide_resnet_16_1")
QUICK: dict[str, Any] = {
    "dataset": {"name": "digits", "train_size": 200, "test_size": 100},
    "model": {"name": "small_cnn", "width": 4},
    "training": {"epochs": 1, "batch_size": 50},
}
QUICK_IMAGES, QUICK_ROWS = 64, ("fine_tuning",)
QUICK_LENGTH = 2  # at most, of whatever is counted in steps
SAMPLE_SECONDS = 1.0
TIME_IS_UP = "time is up; the same command goes on"


class TimeIsUpError(Exception):
    """No further step may begin."""


class Steps:
    """Runs steps that are not finished yet, until the time is up, and keeps their results as JSON."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.deadline = out, time.monotonic() + 60 * minutes

    def run(self, name: str, compute: Callable[[], Any]) -> Any:
        path = self.out / "steps" / f"{name}.json"
        if not path.is_file():
            if time.monotonic() > self.deadline:
                raise TimeIsUpError
            print(f"{name}: begun", flush=True)
            write_atomically(path, json.dumps(compute()).encode())
        return json.loads(path.read_text())


class Page:
    """OUT/gpu.md: how it was made, and the tables."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        command = " ".join(["python benchmarks/gpu.py OUT", *sys.argv[2:]])
        self.where = options.out / "gpu.md"
        self.head = (
            "# Measurements on a GPU\n\n"
            "Measured with `{command}` on {date}: {device}, Python {python}, torch {torch}.\n"
        ).format(**making(SEEDS), command=command, device=device)
        self.sections: dict[str, list[str]] = {}

    def show(self, title: str, lines: list[str]) -> None:
        self.sections[title] = lines
        text = [
            self.head,
            *(line for t, rows in self.sections.items() for line in (f"## {t}", "", *rows, "")),
        ]
        write_atomically(self.where, "\n".join(text).encode())


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def measure_speed(options: argparse.Namespace, steps: Steps, page: Page) -> None:
    rows: list[list[str]] = []
    for network in ("small_cnn",) if options.quick else NETWORKS:
        count = QUICK_IMAGES if options.quick else gpu_training.IMAGES
        key = f"images-{network}-{options.device}-{count}"
        rows += steps.run(key, lambda n=network, c=count: list(gpu_training.measure(n, options.device, c)))
        page.show("Images per second", table(["network", "what", "images per second", "epochs"], rows))


def compare(options: argparse.Namespace, steps: Steps, page: Page) -> None:
    """Clean accuracy / attack success of every arm and seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    epochs = QUICK["training"]["epochs"] if options.quick else options.epochs
    for seed in SEEDS:
        for name in DEFENSES:
            given = make_spec(name, epochs) | {"seeds": [seed]}
            if options.quick:
                given |= QUICK
                given["defenses"] = [shorten(defense) for defense in given["defenses"]]
            key = f"cell-{'quick' if options.quick else f'{epochs}-epochs'}-{name}-{seed}"

            def run(given: dict[str, Any] = given) -> Any:
                return arms(given, options.out / "comparison", options.data, options.device)

            for arm, values in steps.run(key, run).items():
                if arm == name or (arm == UNDEFENDED and name == DEFENSES[0]):
                    found.setdefault(arm, []).append(values)
            rows = [
                [
                    arm,
                    outcome(values),
                    *(outcome([one]) for one in values),
                    *["-"] * (len(SEEDS) - len(values)),
                ]
                for arm, values in found.items()
                if arm != CLEAN
            ]
            head = ["arm", "mean", *(f"seed {seed}" for seed in SEEDS)]
            page.show(f"Seven arms, three seeds, BadNets, {epochs} epochs", table(head, rows))


def make_spec(defense: str, epochs: int) -> dict[str, Any]:
    """BadNets and one defense, on all of CIFAR-10 with a ResNet-18 that trains for few epochs."""
    isolation = max(4, 3 * epochs // 4)
    lengths: dict[str, dict[str, Any]] = {
        "abl": {
            "isolation_epochs": isolation,
            "ranking_window": isolation // 2,
            "finetune_epochs": epochs,
            "unlearning_epochs": 2,
        },
        "anp": {"steps": 500},
    }
    document = {
        "dataset": {"name": "cifar10"},
        "model": {"name": "resnet18"},
        "attack": {"name": "badnets"},
        "defenses": [{"name": defense} | lengths.get(defense, {})],
        "training": {"epochs": epochs, "batch_size": 256, "learning_rate": 0.2, "schedule": "one_cycle"},
    }
    return ExperimentSpec.model_validate(document).model_dump(mode="json")


def outcome(seeds: list[dict[str, Any]]) -> str:
    return f"{mean(seeds, 'clean_accuracy')} / {mean(seeds, 'attack_success_rate')}"


def shorten(defense: dict[str, Any]) -> dict[str, Any]:
    return {
        name: min(value, QUICK_LENGTH) if name.endswith("steps") and value else value
        for name, value in defense.items()
    }


def measure_fidelity(options: argparse.Namespace, steps: Steps, page: Page) -> None:
    for network in FIDELITY_NETWORKS:
        document = (QUICK if options.quick else {}) | {"model": {"name": network}}
        setting = fidelity.Setting(
            changes=(("steps", QUICK_LENGTH),) if options.quick else (),
            document=tuple(document.items()),
            device=options.device,
            work=options.out / "fidelity",
        )
        setting.work.mkdir(exist_ok=True)
        rows = [row for row in fidelity.ROWS if not options.quick or row.defense in QUICK_ROWS]
        for row in rows:
            key = f"fidelity-{'quick-' if options.quick else ''}{network}-{row.name.replace(' ', '-')}"
            steps.run(key, lambda row=row, setting=setting: fidelity.compute(row, setting))
            # Without its sentence about a CPU.
            lines = [line for line in fidelity.table(setting, rows) if not line.startswith("Measured")]
            page.show(f"Fidelity with {network}", lines[1:])


@contextmanager
def sampling(where: Path) -> Iterator[None]:
    """Append the GPU's utilization in percent to a file, once a second; nothing where the driver does not tell it."""
    stop = threading.Event()

    def sample() -> None:
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(find_device().id)
            with where.open("a") as file:
                while not stop.wait(SAMPLE_SECONDS):
                    print(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu, file=file, flush=True)
        except pynvml.NVMLError:
            return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def describe_utilization(where: Path) -> list[str]:
    samples = [int(line) for line in where.read_text().split()] if where.is_file() else []
    if not samples:
        return ["Not available: there is no GPU, or its driver does not tell."]
    busy = statistics.fmean(sample > 0 for sample in samples)
    return [
        f"While the arms were computed, in {len(samples)} samples: mean {statistics.fmean(samples):.0f} %, "
        f"median {statistics.median(samples):.0f} %; above 0 % in {100 * busy:.0f} % of them."
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all measurements that need a GPU.")
    parser.add_argument("out", type=Path, help="folder for results; finished steps in it are kept")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no step after this time")
    parser.add_argument(
        "--epochs", type=int, default=30, help="length of a victim's training in the comparison"
    )
    parser.add_argument("--data", type=Path, default=fidelity.DATA_DIR, help="folder of datasets")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a trial of the script on digits")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --quick tries the script without one")
    # So that reports leave figures out: the GPU would wait for them.
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else find_device().name
    steps, page = Steps(options.out, options.minutes), Page(options, device)
    utilization = options.out / "utilization.txt"
    try:
        measure_speed(options, steps, page)
        with sampling(utilization):
            compare(options, steps, page)
        page.show("Utilization of the GPU", describe_utilization(utilization))
        measure_fidelity(options, steps, page)
    except TimeIsUpError:
        page.show("Utilization of the GPU", describe_utilization(utilization))
        print(TIME_IS_UP)
    print(page.where.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
