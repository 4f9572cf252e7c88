"""Every repair and training defense with published settings, beside the numbers that its source reports.

``python benchmarks/fidelity.py`` writes docs/results/fidelity.md: all 50,000 images of CIFAR-10, `wide_resnet_16_1`,
BadNets with the 3x3 grid at a rate of 0.1, one seed. The repairs that were measured took up to a quarter of an hour
each on one core that supports bfloat16. It can be interrupted: the numbers of finished rows are in
docs/results/fidelity.jsonl, stages under var/fidelity.

``--victim FILE`` starts from a model instead of training one, such as the one that the ABL authors publish (their
weight/backdoored_model/WRN-16-1-gridTrigger-targetLB0.tar as safetensors, with ``mean`` 0 and ``std`` 1, since it is
trained without normalization). ``--rows`` computes only some rows. Rows that were not computed are named on the page.

``--target CLASS`` and ``--set FIELD=VALUE`` are for tuning: a row for a victim with another target class, or with a
field of the defense changed. They print their numbers and leave the page alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _heading import making
from _numbers import Numbers

from app.specs.experiment import ExperimentSpec
from app.specs.stages import LAB_VERSION
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "fidelity.md"
WORK = ROOT / "var" / "fidelity"
DATA_DIR = Path(os.environ.get("BDLAB_DATA_DIR", ROOT / "var" / "data"))
START, END = "<!-- table -->", "<!-- end of table -->"
MADE = (
    "Measured with `python benchmarks/fidelity.py`: {processor}, one thread, Python {python}, torch {torch}. The "
    "numbers are in [fidelity.jsonl](fidelity.jsonl)."
)
NO_ID = "0" * 8 + "-0000-4000-8000-" + "0" * 12
"""The victim's id in a spec; the file is given to the lab directly."""
NAD_README = "the NAD authors' README: WRN-16-1, the same grid"
ABL_README = "the ABL authors' demo: WRN-16-1, the same grid"
RNP_README = "the RNP authors' README: ResNet-18, the same grid, threshold 0.2"
BOARD = "BackdoorBench's leaderboard: PreActResNet-18, a white square"


class Row(NamedTuple):
    """A defense at a preset. ``published`` is clean accuracy / attack success in percent, before -> after.

    ``cutout`` adds the 2 x 2 pixels that the ABL and NAD authors cut out of images to the augmentation of the repair.
    """

    defense: str
    preset: str
    published: str
    source: str
    cutout: int = 0

    @property
    def name(self) -> str:
        return f"{self.defense} ({self.preset}{', cutout' if self.cutout else ''})"


ROWS = (
    Row("fine_tuning", "benchmark", "91.3 / 95.0 -> 90.0 / 1.5", BOARD),
    Row("fine_tuning", "benchmark", "85.7 / 100.0 -> 82.3 / 18.1", NAD_README, 2),
    Row("fine_pruning", "benchmark", "91.3 / 95.0 -> 91.3 / 57.1", BOARD),
    Row("nad", "authors", "85.7 / 100.0 -> 82.1 / 3.6", NAD_README),
    Row("nad", "benchmark", "91.3 / 95.0 -> 89.9 / 2.1", BOARD),
    Row("anp", "recommended", "91.3 / 95.0 -> 84.2 / 0.7", BOARD),
    Row("anp", "authors", "", "none for this network and trigger"),
    Row("i_bau", "recommended", "91.3 / 95.0 -> 89.2 / 1.3", BOARD),
    Row("i_bau", "authors", "", "none for this network and trigger"),
    Row("ft_sam", "recommended", "", "none for this network and trigger"),
    Row("ft_sam", "benchmark", "", "none for this network and trigger"),
    Row("mcr", "authors", "", "none for this network and trigger"),
    Row("clp", "authors", "", "none for this network and trigger"),
    Row("fe_tuning", "authors", "", "none for this network and trigger"),
    Row("fst", "authors", "", "none for this network and trigger"),
    Row("bnp", "authors", "", "none for this network and trigger"),
    Row("ep", "authors", "", "none for this network and trigger"),
    Row("ep", "benchmark", "", "none for this network and trigger"),
    Row("rnp", "authors", "93.4 / 100.0 -> 92.8 / 6.6", RNP_README),
    Row("rnp", "benchmark", "", "none for this network and trigger"),
    Row("sau", "benchmark", "", "none for this network and trigger"),
    Row("npd", "benchmark", "", "none for this network and trigger"),
    Row("bti_dbf", "authors", "", "none for this network and trigger"),
    Row("abl", "authors", "82.8 / 100.0 -> 81.9 / 0.5", ABL_README),
)


class Setting(NamedTuple):
    """What all rows share, and what is changed in a row for tuning."""

    victim: Path | None = None
    target: int = 0
    changes: tuple[tuple[str, Any], ...] = ()
    document: tuple[tuple[str, Any], ...] = ()
    """Fields of the experiment to change; benchmarks/gpu.py measures other networks."""
    device: str = "cpu"
    work: Path = WORK

    @property
    def numbers(self) -> Numbers:
        """Those of the page; what was changed for tuning, or measured elsewhere, has a file of its own in ``work``."""
        return Numbers(PAGE if self == Setting(self.victim) else self.work / "rows")


def spec_of(row: Row, setting: Setting) -> ExperimentSpec:
    """The experiment of one row; all rows share the victim's stage."""
    document: dict[str, Any] = {
        "dataset": {"name": "cifar10"},
        "model": {"name": "wide_resnet_16_1"},
        "attack": {"name": "badnets", "target_class": setting.target},
        "training": {"precision": "bfloat16"}
        | ({"augmentation": {"cutout": row.cutout}} if row.cutout else {}),
        "defenses": [{"name": row.defense, "preset": row.preset} | dict(setting.changes)],
    }
    return ExperimentSpec.model_validate(
        document | dict(setting.document) | ({"victim": {"model_id": NO_ID}} if setting.victim else {})
    )


def key_of(row: Row, setting: Setting) -> str:
    """The name of a row in the file of numbers."""
    stem = setting.victim.stem if setting.victim else "trained"
    return f"{row.name}, {stem}, {spec_of(row, setting).spec_hash[:12]}"


def compute(row: Row, setting: Setting) -> dict[str, Any]:
    """The numbers of both arms, from the file of numbers if they were computed before."""
    key = key_of(row, setting)
    document = setting.numbers.find(key)
    if document is None:
        recorder = FolderRecorder(setting.work / key.rpartition(" ")[2], sys.stderr)
        try:
            result = run_experiment(
                spec_of(row, setting),
                recorder,
                FolderStore(setting.work / "stages"),
                data_dir=DATA_DIR,
                device=setting.device,
                victim=setting.victim,
            )
        finally:
            recorder.close()
        document = {"arms": {arm["arm"]: arm["seeds"][0] for arm in result["arms"]}}
        facts = {"made": making([0]), "lab_version": LAB_VERSION, "warnings": recorder.notes}
        setting.numbers.store(key, facts | document)
    arms: dict[str, Any] = document["arms"]
    return arms


def pair(values: dict[str, Any]) -> str:
    """Clean accuracy / attack success in percent."""
    return f"{100 * values['clean_accuracy']:.1f} / {100 * values['attack_success_rate']:.1f}"


def table(setting: Setting, rows: Sequence[Row] = ROWS) -> list[str]:
    """How the computed rows were made, the rows, and a sentence about the others."""
    stored = setting.numbers.read()
    found = {row: stored[key] for row in rows if (key := key_of(row, setting)) in stored}
    made = {MADE.format(**document["made"]): None for document in found.values()}
    lines = [
        *made,
        "",
        "| defense (preset) | before | after | robust accuracy | DER | published | source | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, document in found.items():
        before, after = document["arms"]["undefended"], document["arms"][row.defense]
        robust, rating = after["robust_accuracy"], after["defense_effectiveness"]
        lines.append(
            f"| {row.name} | {pair(before)} | {pair(after)} | {100 * robust:.1f} | {rating:.2f} "
            f"| {row.published or '-'} | {row.source} | {document['made']['date']} |"
        )
    missing = [row.name for row in rows if row not in found]
    return lines + (["", f"Not measured yet: {', '.join(missing)}."] if missing else [])


def page(setting: Setting) -> str:
    """The page with a new table; the rest of it is written by hand."""
    head, _, rest = PAGE.read_text().partition(START)
    return "\n".join([head + START, *table(setting), END]) + rest.partition(END)[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the fidelity page.")
    parser.add_argument(
        "--victim", type=Path, help="a safetensors file to defend, instead of a trained victim"
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        help="names of rows or defenses, such as nad, nad:authors or 'ft_sam (benchmark, cutout)'; default: all",
    )
    parser.add_argument("--no-page", action="store_true", help="compute only")
    parser.add_argument("--target", type=int, default=0, help="target class of the victim")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        type=lambda text: (text.partition("=")[0], json.loads(text.partition("=")[2])),
        help="fields of the defense to change; values are JSON",
    )
    options = parser.parse_args()
    setting = Setting(options.victim, options.target, tuple(options.set))
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        names = {row.defense, f"{row.defense}:{row.preset}", row.name}
        if options.rows is None or names & set(options.rows):
            arms = compute(row, setting)
            print(f"{row.name}: {pair(arms['undefended'])} -> {pair(arms[row.defense])}", flush=True)
    if not options.no_page and setting == Setting(options.victim):
        PAGE.write_text(page(setting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
