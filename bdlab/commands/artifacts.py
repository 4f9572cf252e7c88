"""`bdlab artifacts list|get`."""

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from bdlab.commands.common import NOT_FOUND, AsJson, CommandError, ExperimentId, Url, connect, print_result
from bdlab.commands.tables import text_table
from bdlab.transport import without_none
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
        artifacts = client.artifacts(id, **without_none(kind=kind, arm=arm))
    rows = [(a["name"], a["kind"], a["size"], a["media_type"]) for a in artifacts]
    print_result(artifacts, as_json, text_table("", ("name", "kind", "bytes", "type"), rows))


@app.command("get")
def get(
    id: ExperimentId,
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or patterns such as '*.png'. Default: all files.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(),
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download files, keeping their relative paths, and verify their digests."""
    with connect(url) as client:
        artifacts = client.artifacts(id)
        selected = [a for a in artifacts if not names or any(fnmatch(a["name"], name) for name in names)]
        if not selected:
            what = " or ".join(names) if names else "file"
            raise CommandError(f"experiment {id} has no {what}; it has {len(artifacts)} files", NOT_FOUND)
        paths = [str(client.download(artifact, folder / safe_name(artifact))) for artifact in selected]
    print_result(paths, as_json, "\n".join(paths))


def safe_name(artifact: Artifact) -> PurePosixPath:
    """The artifact's relative path. Rejects paths outside the folder, which a malicious service could send."""
    name = PurePosixPath(artifact["name"])
    if name.is_absolute() or ".." in name.parts:
        raise CommandError(f"artifact {artifact['name']!r} has a path outside the folder")
    return name
