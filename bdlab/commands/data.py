"""`bdlab data import|fetch|list`: they work on this machine's data folder, and need no service.

The work is done by the data plane in a process of its own, so that this command never loads its libraries.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.settings import Settings
from bdlab.commands.common import AsJson, CommandError

app = typer.Typer(help="Data sets under BDLAB_DATA_DIR on this machine.")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help=".npz with x_train, y_train, x_test, y_test; zip or folder of images by class; parquet."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Key for specs. Default: from the file's name.")] = None,
    built_in: Annotated[
        str | None,
        typer.Option("--as", help="Store as cifar10 or gtsrb, if shape and class counts are right."),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="The test images, for a pair of parquet files.")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Split off this share of each class where there is no test set.")
    ] = None,
    split_seed: Annotated[int, typer.Option(min=0, help="Seed of that split.")] = 0,
    size: Annotated[int | None, typer.Option(help="Resize pictures to SIZE x SIZE.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite a different set of that name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a data set into one file that experiments can name."""
    if name and built_in:
        raise CommandError(f"--name {name} and --as {built_in} exclude each other")
    options = {
        "--name": name,
        "--as": built_in,
        "--test": test,
        "--test-fraction": test_fraction,
        "--split-seed": split_seed,
        "--size": size,
    }
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    _run("import", *given, *(["--replace"] if replace else []), *_flags(as_json), "--", str(source))


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10 or gtsrb.")],
    as_json: AsJson = False,
) -> None:
    """Download a built-in data set. Needs a network."""
    _run("fetch", *_flags(as_json), "--", name)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the data sets on this machine."""
    _run("list", *_flags(as_json))


def _flags(as_json: bool) -> list[str]:
    return [f"--data-dir={Settings().datasets}", *(["--json"] if as_json else [])]


def _run(*words: str) -> None:
    if importlib.util.find_spec("worker") is None or importlib.util.find_spec("torch") is None:
        raise CommandError(
            "`bdlab data` needs the worker's packages (pip install 'backdoor-lab[worker]'), not found here"
        )
    raise typer.Exit(subprocess.call([sys.executable, "-m", "worker.lab.data", *words]))
