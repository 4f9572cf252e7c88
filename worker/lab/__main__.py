"""``python -m worker.lab spec.json --out DIR``: run one experiment without database, broker or HTTP."""

import argparse
import json
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from app.specs.experiment import ExperimentSpec
from worker.lab.contracts import LabError
from worker.lab.experiment import run_experiment
from worker.lab.local import FolderRecorder, FolderStore, write_atomically


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 success, 1 the experiment failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.lab", description="Run one experiment on this machine."
    )
    parser.add_argument("spec", type=Path, help="experiment spec, JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, figures and checkpoints")
    parser.add_argument("--cache", type=Path, help="folder of finished stages to reuse (default: OUT/stages)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("BDLAB_DATA_DIR", "var/data")),
        help="folder of datasets",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="overrides the spec's device")
    parser.add_argument(
        "--victim", type=Path, help="model.safetensors to start from instead of training the victim"
    )
    options = parser.parse_args(arguments)
    try:
        spec = ExperimentSpec.model_validate_json(options.spec.read_bytes())
    except OSError as error:
        print(f"{options.spec}: {error.strerror}", file=sys.stderr)
        return 2
    except ValidationError as error:
        for fault in error.errors():
            print(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, not {fault['input']!r}", file=sys.stderr
            )
        return 2
    recorder = FolderRecorder(options.out, echo=sys.stderr)
    store = FolderStore(options.cache or options.out / "stages")
    try:
        results = run_experiment(
            spec, recorder, store, data_dir=options.data, device=options.device, victim=options.victim
        )
    except LabError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        recorder.close()
    document = {"experiment_id": spec.spec_hash[:12], **results, "notes": recorder.notes}
    write_atomically(options.out / "results.json", json.dumps(document, indent=1).encode())
    for arm in results["arms"]:
        means = (f"{name} {value['mean']:.3f}" for name, value in arm["aggregate"].items() if value)
        print(f"{arm['arm']}: {', '.join(means)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
