"""`bdlab submit|watch|list|logs|cancel|retry|predict|catalog`."""

import base64
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from bdlab.commands import tables
from bdlab.commands.common import (
    AsJson,
    CommandError,
    ExperimentId,
    Url,
    connect,
    out,
    print_json,
    without_none,
)
from bdlab.commands.following import follow

PATIENCE = 60.0
"""For how many seconds `watch` waits for a service that has gone away: long enough for a restart."""


def submit(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="File with the spec as JSON; - is standard input.")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit an experiment and print its id."""
    body = read_spec(spec)
    with connect(url, patience=PATIENCE if watch else 1.0) as client:
        experiment = client.submit(body)
        if not watch:
            if as_json:
                print_json(experiment)
            else:
                typer.echo(experiment["id"])
            return
        if not as_json:
            typer.echo(experiment["id"])
        raise typer.Exit(follow(client, experiment["id"], as_json=as_json))


def watch(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Follow an experiment to its end, then print its results. Exit code 1 if it failed or was canceled."""
    with connect(url, patience=PATIENCE) as client:
        client.experiment(id)
        raise typer.Exit(follow(client, id, as_json=as_json))


def list_(
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or canceled.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    attack: Annotated[str | None, typer.Option(help="Name of the attack.")] = None,
    defense: Annotated[str | None, typer.Option(help="Name of a defense.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="KEY:VALUE; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List experiments, newest first."""
    filters = without_none(
        status=status,
        dataset=dataset,
        model=model,
        attack=attack,
        defense=defense,
        tag=tag,
        limit=min(limit, 200),
    )
    with connect(url) as client:
        found = list(islice(client.experiments(**filters), limit))
    if as_json:
        print_json(found)
    else:
        out.print(tables.experiments(found))


def logs(
    id: ExperimentId,
    tail: Annotated[int, typer.Option(min=1, max=10_000, help="Only so many lines, the last.")] = 1000,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print what the workers wrote about an experiment."""
    with connect(url) as client:
        lines = client.logs(id, tail=tail)
    if as_json:
        print_json(lines)
    else:
        for line in lines:
            typer.echo(f"{line['at']} {line['message']}")


def cancel(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel an experiment. One that is running stops within one batch."""
    with connect(url) as client:
        _show_state(client.cancel(id), as_json)


def retry(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Run an experiment again that has ended."""
    with connect(url) as client:
        _show_state(client.retry(id), as_json)


def predict(
    id: ExperimentId,
    index: Annotated[int | None, typer.Option(min=0, help="Take this image of the test set.")] = None,
    image: Annotated[Path | None, typer.Option(help="Take this picture.")] = None,
    triggered: Annotated[bool, typer.Option("--triggered", help="Put the attack's trigger on it.")] = False,
    seed: Annotated[int | None, typer.Option(help="Use the models of this seed. Default: the first.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write what the models saw to this PNG.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Classify one image with every arm's model."""
    if (index is None) == (image is None):
        raise CommandError("give either --index N or --image FILE")
    uploaded = _read_bytes(image) if image else None
    with connect(url) as client:
        answer = client.predict(id, index=index, image=uploaded, triggered=triggered, seed=seed)
    if picture:
        picture.write_bytes(base64.b64decode(answer["picture"]))
    if as_json:
        print_json(answer)
        return
    truth = answer["image"].get("label_name")
    rows = [(a["arm"], a["class_name"], f"{100 * max(a['probabilities']):.1f} %") for a in answer["arms"]]
    out.print(tables.plain(f"true class: {truth}" if truth else "", ("arm", "class", "probability"), rows))


def catalog(url: Url = None, as_json: AsJson = False) -> None:
    """List attacks, defenses, data sets and models that the service knows."""
    with connect(url) as client:
        known = client.catalog()
    if as_json:
        print_json(known)
        return
    for kind in ("attacks", "defenses", "datasets", "models"):
        rows = [(entry["name"], entry["summary"]) for entry in known[kind]]
        out.print(tables.plain(kind, ("name", "summary"), rows))


def read_spec(source: str) -> dict[str, Any]:
    """The JSON object in the file ``source``, or on standard input if it is ``-``."""
    text = sys.stdin.buffer.read() if source == "-" else _read_bytes(Path(source))
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{source} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise CommandError(f"{source} holds no JSON object; a spec is one")
    return spec


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error


def _show_state(experiment: Any, as_json: bool) -> None:
    if as_json:
        print_json(experiment)
    else:
        typer.echo(f"{experiment['id']} {experiment['status']}")
