"""``python -m worker.lab.data import|fetch|list``, which `bdlab data` runs. The exit code is 2 for bad input."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from app.specs.dataset import FETCHED
from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.fetching import fetch_dataset
from worker.lab.data.hub import PREFIX, download_from_hub
from worker.lab.data.importing import (
    StoredDataset,
    dataset_path,
    dataset_spec,
    import_dataset,
    key_of,
)


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.command == "list":
            _show_list(list(_stored_datasets(options.data_dir)), options.json)
        else:
            _show(_run(options), options.json)
    except (LabError, OSError) as error:
        print(f"bdlab: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> StoredDataset:
    if options.command == "fetch":
        return fetch_dataset(options.name, options.data_dir)
    if not options.source.startswith(PREFIX):
        if options.config is not None:
            raise LabError(f"--config {options.config} is only for {PREFIX}OWNER/NAME")
        return _import(Path(options.source), options.name, options)
    with download_from_hub(options.source, options.config, options.data_dir) as (folder, notes):
        stored = _import(folder, options.name or key_of(Path(options.source.removeprefix(PREFIX))), options)
    return replace(stored, notes=(*notes, *stored.notes))


def _import(source: Path, key: str | None, options: argparse.Namespace) -> StoredDataset:
    return import_dataset(
        source,
        options.data_dir,
        key=key,
        built_in=options.built_in,
        test=options.test,
        test_fraction=options.test_fraction,
        split_seed=options.split_seed,
        size=options.size,
        replace=options.replace,
        zip_encoding=options.zip_encoding,
    )


def _stored_datasets(data_dir: Path) -> Iterator[StoredDataset]:
    paths = {name: dataset_path(name, data_dir) for name in FETCHED}
    paths |= {path.stem: path for path in sorted((data_dir / "imported").glob("[!.]*.safetensors"))}
    for name, path in paths.items():
        if path.exists():
            yield StoredDataset(dataset_spec(name), path, *files.read_header(path))


def _as_json(stored: StoredDataset) -> dict[str, object]:
    return {
        "dataset": stored.dataset,
        "path": str(stored.path),
        "sha256": stored.sha256,
        "facts": stored.facts.model_dump(mode="json"),
        "notes": stored.notes,
    }


def _line(stored: StoredDataset) -> str:
    facts = stored.facts
    name = stored.dataset.get("key", stored.dataset["name"])
    poisoned = "" if facts.poisoned is None else f" ({facts.poisoned} marked as poisoned)"
    triggered = f", {facts.triggered} triggered test images" if facts.triggered else ""
    return (
        f"{name}: {facts.train_size} training{poisoned} and {facts.test_size} test images{triggered}, "
        f"{facts.channels}x{facts.height}x{facts.width}, {facts.classes} classes; {stored.path}"
    )


def _show(stored: StoredDataset, as_json: bool) -> None:
    for note in stored.notes:
        print(f"bdlab: note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(_as_json(stored)))
        return
    print(_line(stored))
    print(f'in a spec: "dataset": {json.dumps(stored.dataset)}')


def _show_list(datasets: list[StoredDataset], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_as_json(stored) for stored in datasets]))
        return
    print("digits: built in, needs no file")
    for stored in datasets:
        print(_line(stored))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, required=True)
    common.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser(prog="python -m worker.lab.data")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[common])
    commands.add_parser("fetch", parents=[common]).add_argument("name", choices=FETCHED)
    importing = commands.add_parser("import", parents=[common])
    importing.add_argument("source")
    importing.add_argument("--config")
    importing.add_argument("--name")
    importing.add_argument("--as", dest="built_in", choices=FETCHED)
    importing.add_argument("--test", type=Path)
    importing.add_argument("--test-fraction", type=float)
    importing.add_argument("--split-seed", type=int, default=0)
    importing.add_argument("--size", type=int)
    importing.add_argument("--zip-encoding")
    importing.add_argument("--replace", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
