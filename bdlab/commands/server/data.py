"""`bdlab data import|fetch|list`, on this machine's data folder; the service need not run.

The worker's code runs in a process of its own, so that this command never loads torch.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from bdlab.commands.common import AsJson, CommandError
from bdlab.commands.server.extras import needs

app = typer.Typer(help="Datasets in BDLAB_DATA_DIR on this machine.")


@app.command("import", cls=needs("worker"))
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help=".npz with x_train, y_train, x_test, y_test; zip or folder of images by class; parquet; "
            "or hf:OWNER/NAME on the Hugging Face Hub."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Key for specs. Default: from the file's name.")] = None,
    built_in: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Store as cifar10, gtsrb or another name of `fetch`; shape and class counts must match.",
        ),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="The test images, for a pair of parquet files.")] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Fraction of each class to split off as test set if the source has none."),
    ] = None,
    split_seed: Annotated[int, typer.Option(min=0, help="Seed of that split.")] = 0,
    config: Annotated[
        str | None, typer.Option(help="The configuration of a dataset on the Hub that has several.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Resize images to SIZE x SIZE.")] = None,
    zip_encoding: Annotated[
        str | None,
        typer.Option(help="Encoding of names in a zip that are not in UTF-8, such as gbk or shift_jis."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite a different dataset with the same name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a dataset into one file that experiments can refer to."""
    if name and built_in:
        raise CommandError(f"--name {name} and --as {built_in} exclude each other")
    options = {
        "--name": name,
        "--as": built_in,
        "--test": test,
        "--test-fraction": test_fraction,
        "--split-seed": split_seed,
        "--config": config,
        "--size": size,
        "--zip-encoding": zip_encoding,
    }
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    _run("import", as_json, *words, *(["--replace"] if replace else []), "--", source)


@app.command("fetch", cls=needs("worker"))
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="cifar10, cifar100, gtsrb, svhn, mnist, fashion_mnist, stl10, imagenette or tiny_imagenet."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Download a dataset that specs name by its own name. Needs a network."""
    _run("fetch", as_json, "--", name)


@app.command("list", cls=needs("worker"))
def list_(as_json: AsJson = False) -> None:
    """List the datasets on this machine."""
    _run("list", as_json)


def _run(command: str, as_json: bool, *words: str) -> None:
    from app.settings import Settings

    options = [f"--data-dir={Settings().datasets}", *(["--json"] if as_json else [])]
    raise typer.Exit(subprocess.call([sys.executable, "-m", "worker.lab.data", command, *options, *words]))
