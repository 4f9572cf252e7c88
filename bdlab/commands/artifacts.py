"""`bdlab artifacts list|get`."""

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from bdlab.commands import tables
from bdlab.commands.common import (
    NOT_FOUND,
    AsJson,
    CommandError,
    ExperimentId,
    Url,
    connect,
    out,
    print_json,
    without_none,
)
from bdlab.types import Artifact

app = typer.Typer(help="An experiment's files: figures, checkpoints, tables.")


@app.command("list")
def list_(
    id: ExperimentId,
    kind: Annotated[str | None, typer.Option(help="figure, checkpoint, table or data.")] = None,
    arm: Annotated[str | None, typer.Option(help="Name of an arm.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List an experiment's files."""
    with connect(url) as client:
        found = client.artifacts(id, **without_none(kind=kind, arm=arm))
    if as_json:
        print_json(found)
    else:
        rows = [(a["name"], a["kind"], a["size"], a["media_type"]) for a in found]
        out.print(tables.plain("", ("name", "kind", "bytes", "type"), rows))


@app.command("get")
def get(
    id: ExperimentId,
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or patterns such as '*.png'; none: all.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(),
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download files, keeping their relative paths. Every download's digest is checked."""
    with connect(url) as client:
        found = client.artifacts(id)
        wanted = [a for a in found if not names or any(fnmatch(a["name"], name) for name in names)]
        if not wanted:
            what = " or ".join(names) if names else "file"
            raise CommandError(f"experiment {id} has no {what}; it has {len(found)} files", NOT_FOUND)
        paths = [client.download(artifact, folder / safe_name(artifact)) for artifact in wanted]
    if as_json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            typer.echo(path)


def safe_name(artifact: Artifact) -> PurePosixPath:
    """The artifact's relative path; a service may not make us write elsewhere."""
    name = PurePosixPath(artifact["name"])
    if name.is_absolute() or ".." in name.parts:
        raise CommandError(f"artifact {artifact['name']!r} has a path that leaves the folder")
    return name
