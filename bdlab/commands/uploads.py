"""`bdlab models` and `bdlab datasets`: send files to the service, and look at what was sent."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bdlab.commands.common import AsJson, CommandError, Url, connect, out, print_json, without_none
from bdlab.commands.tables import plain
from bdlab.uploads import Datasets, Models

models = typer.Typer(help="Models of your own, for experiments to start from.")
datasets = typer.Typer(help="Data sets of your own, sent to the service.")

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)]
UploadId = Annotated[str, typer.Argument(metavar="ID", help="The upload's id.")]
Name = Annotated[str | None, typer.Option(help="A name for people. Default: the file's.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the check.")]
Status = Annotated[str | None, typer.Option(help="pending, ready or refused.")]


@models.command("upload")
def upload_model(
    file: File,
    name: Name = None,
    model: Annotated[
        str | None, typer.Option(help="Architecture: a name, or JSON. Default: as the header says.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A data set of the images that it classifies: a name, or JSON.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Of those images instead, such as 3x32x32.")] = None,
    classes: Annotated[int | None, typer.Option(help="With --shape: number of classes.")] = None,
    no_wait: NoWait = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a safetensors file and wait for its check."""
    metadata = without_none(
        name=name,
        model=_spec("--model", model),
        dataset=_spec("--dataset", dataset),
        shape=_shape(shape, classes),
    )
    with connect(url) as client:
        _upload(client.models, file, metadata, no_wait, as_json)


@datasets.command("upload")
def upload_dataset(
    file: File,
    name: Name = None,
    format: Annotated[
        str | None, typer.Option(help="npz, zip or parquet. Default: as the file's name ends.")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Split off this share of each class where there is no test set.")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of that split.")] = None,
    size: Annotated[int | None, typer.Option(help="Resize pictures to SIZE x SIZE.")] = None,
    no_wait: NoWait = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send an npz, zip or parquet file and wait for its check."""
    metadata = without_none(
        name=name, format=format, test_fraction=test_fraction, split_seed=split_seed, size=size
    )
    with connect(url) as client:
        _upload(client.datasets, file, metadata, no_wait, as_json)


@models.command("list")
def list_models(status: Status = None, url: Url = None, as_json: AsJson = False) -> None:
    """List models, the newest first."""
    with connect(url) as client:
        found = list(client.models.list(**without_none(status=status)))
    _print(found, as_json, "model", lambda row: (row["model"] or {}).get("name", ""))


@datasets.command("list")
def list_datasets(status: Status = None, url: Url = None, as_json: AsJson = False) -> None:
    """List data sets that were sent, the newest first."""
    with connect(url) as client:
        found = list(client.datasets.list(**without_none(status=status)))
    _print(found, as_json, "images", lambda row: sum(row["facts"]["train_counts"]) if row["facts"] else "")


@models.command("show")
def show_model(id: UploadId, url: Url = None, as_json: AsJson = False) -> None:
    """Print what a model is."""
    with connect(url) as client:
        _show(client.models.get(id), as_json)


@datasets.command("show")
def show_dataset(id: UploadId, url: Url = None, as_json: AsJson = False) -> None:
    """Print what a data set is."""
    with connect(url) as client:
        _show(client.datasets.get(id), as_json)


@models.command("delete")
def delete_model(id: UploadId, url: Url = None) -> None:
    """Delete a model; refused while an experiment's spec names it."""
    with connect(url) as client:
        client.models.delete(id)


@datasets.command("delete")
def delete_dataset(id: UploadId, url: Url = None) -> None:
    """Delete a data set; refused while an experiment's spec names it."""
    with connect(url) as client:
        client.datasets.delete(id)


def _upload(
    uploads: Models | Datasets, file: Path, metadata: dict[str, Any], no_wait: bool, as_json: bool
) -> None:
    found = uploads.upload(file, **metadata)
    if not no_wait:
        found = uploads.wait(found["id"])
    if as_json:
        print_json(found)
    else:
        typer.echo(found["id"])
    if found["status"] == "refused":
        raise CommandError(f"{file.name} was refused: {found['reason']}")


def _print(found: list[dict[str, Any]], as_json: bool, what: str, describe: Any) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (row["id"], row["name"], row["status"], describe(row), row["size"], row["reason"] or "")
        for row in found
    ]
    out.print(plain("", ("id", "name", "status", what, "bytes", "reason"), rows))


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if value not in (None, {}):
            typer.echo(f"{key}: {value if isinstance(value, str | int) else json.dumps(value)}")


def _spec(option: str, text: str | None) -> dict[str, Any] | None:
    """A name, or JSON, as a spec has it."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        given: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{option} {text!r} is no JSON: {error}") from error
    return given


def _shape(text: str | None, classes: int | None) -> dict[str, int] | None:
    if text is None and classes is None:
        return None
    sides = (text or "").split("x")
    if classes is None or len(sides) != 3 or not all(side.isdecimal() for side in sides):
        raise CommandError(
            f"--shape {text} --classes {classes} is not allowed; an example is --shape 3x32x32 --classes 10"
        )
    return {"channels": int(sides[0]), "height": int(sides[1]), "width": int(sides[2]), "classes": classes}
