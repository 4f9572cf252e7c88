"""`bdlab models` and `bdlab datasets`: upload, list, show and delete the user's own models and datasets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bdlab.client import Client
from bdlab.commands.common import AsJson, CommandError, Url, connect, print_fields, print_result
from bdlab.commands.tables import text_table
from bdlab.conversion import convert_checkpoint
from bdlab.transport import without_none
from bdlab.uploads import Uploads

models = typer.Typer(help="Uploaded models, for experiments to start from.")
datasets = typer.Typer(help="Uploaded datasets.")

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID", help="The upload's id.")]
Name = Annotated[str | None, typer.Option(help="A name to show. Default: the name of the file.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the check.")]


@models.command("upload")
def upload_model(
    file: File,
    name: Name = None,
    model: Annotated[
        str | None, typer.Option(help="Architecture: a name, or JSON. Default: as in the file's header.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset of the images that it classifies: a name, or JSON.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of those images, such as 3x32x32, instead of --dataset.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="With --shape: number of classes.")] = None,
    no_wait: NoWait = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload a safetensors file and wait for its check."""
    metadata = without_none(
        name=name,
        model=_parse_spec("--model", model),
        dataset=_parse_spec("--dataset", dataset),
        shape=_parse_shape(shape, classes),
    )
    with connect(url) as client:
        _upload(client.models, file, metadata, no_wait, as_json)


@models.command("convert")
def convert_model(
    file: File,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Default: FILE with the suffix .safetensors.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Entry that holds the weights, such as ema.state_dict.")
    ] = None,
) -> None:
    """Write the weights of a file of torch.save (.pth, .pt, .ckpt) as safetensors; needs torch, no service."""
    target = out or file.with_suffix(".safetensors")
    typer.echo(convert_checkpoint(file, target, key))


@datasets.command("upload")
def upload_dataset(
    file: File,
    name: Name = None,
    format: Annotated[
        str | None, typer.Option(help="npz, zip or parquet. Default: the file's suffix.")
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Fraction of each class to split off as test set if the file has none."),
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of that split.")] = None,
    size: Annotated[int | None, typer.Option(help="Resize images to SIZE x SIZE.")] = None,
    zip_encoding: Annotated[
        str | None,
        typer.Option(help="Encoding of names in a zip that are not in UTF-8, such as gbk or shift_jis."),
    ] = None,
    no_wait: NoWait = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload an npz, zip or parquet file and wait for its check."""
    metadata = without_none(
        name=name,
        format=format,
        test_fraction=test_fraction,
        split_seed=split_seed,
        size=size,
        zip_encoding=zip_encoding,
    )
    with connect(url) as client:
        _upload(client.datasets, file, metadata, no_wait, as_json)


def _upload(uploads: Uploads, file: Path, metadata: dict[str, Any], no_wait: bool, as_json: bool) -> None:
    upload = uploads.upload(file, **metadata)
    if not no_wait:
        upload = uploads.wait(upload["id"])
    print_result(upload, as_json, upload["id"])
    if upload.get("mapped"):
        typer.echo(f"{file.name}: {upload['mapped']}", err=True)
    if upload["status"] == "refused":
        raise CommandError(f"{file.name} was refused: {upload['reason']}")


def _add_shared_commands(
    app: typer.Typer,
    kind: str,
    uploads_of: Callable[[Client], Uploads],
    heading: str,
    describe: Callable[[dict[str, Any]], object],
) -> None:
    """Add `list`, `show` and `delete` to the group of a ``kind``; ``describe`` fills the column ``heading``."""

    @app.command("list", help=f"List uploaded {kind}s, newest first.")
    def list_(
        status: Annotated[str | None, typer.Option(help="pending, ready or refused.")] = None,
        url: Url = None,
        as_json: AsJson = False,
    ) -> None:
        with connect(url) as client:
            uploads = [*uploads_of(client).list(**without_none(status=status))]
        rows = [(u["id"], u["name"], u["status"], describe(u), u["size"], u["reason"] or "") for u in uploads]
        headings = ("id", "name", "status", heading, "bytes", "reason")
        print_result(uploads, as_json, text_table("", headings, rows))

    @app.command(help=f"Print the details of a {kind}.")
    def show(id: Id, url: Url = None, as_json: AsJson = False) -> None:
        with connect(url) as client:
            print_fields(uploads_of(client).get(id), as_json)

    @app.command(help=f"Delete a {kind} that no experiment refers to.")
    def delete(id: Id, url: Url = None) -> None:
        with connect(url) as client:
            uploads_of(client).delete(id)


def _model_name(upload: dict[str, Any]) -> object:
    return (upload["model"] or {}).get("name", "")


def _image_count(upload: dict[str, Any]) -> object:
    return sum(upload["facts"]["train_counts"]) if upload["facts"] else ""


_add_shared_commands(models, "model", lambda client: client.models, "model", _model_name)
_add_shared_commands(datasets, "dataset", lambda client: client.datasets, "images", _image_count)


def _parse_spec(option: str, text: str | None) -> dict[str, Any] | None:
    """The value of an option that takes a name or JSON, as it stands in a spec."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        spec: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{option} {text!r} is not valid JSON: {error}") from error
    return spec


def _parse_shape(text: str | None, classes: int | None) -> dict[str, int] | None:
    if text is None and classes is None:
        return None
    sides = (text or "").split("x")
    if classes is None or len(sides) != 3 or not all(side.isdecimal() for side in sides):
        raise CommandError(
            f"--shape {text} --classes {classes} is not allowed; an example is --shape 3x32x32 --classes 10"
        )
    return {"channels": int(sides[0]), "height": int(sides[1]), "width": int(sides[2]), "classes": classes}
