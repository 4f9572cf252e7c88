"""`bdlab submit|watch|list|logs|cancel|retry|predict|catalog`."""

import base64
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from app.specs.printable import printable
from bdlab.commands.common import (
    FOLLOW_PATIENCE,
    AsJson,
    CommandError,
    ExperimentId,
    Url,
    connect,
    out,
    print_json,
    print_result,
    print_text,
)
from bdlab.commands.following import follow, print_id
from bdlab.commands.tables import experiments_table, text_table
from bdlab.transport import without_none
from bdlab.types import Experiment

PAGE_SIZE = 200
"""The most experiments that the service returns at once."""


def submit(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="File with the spec as JSON; - is standard input.")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Follow it until it has ended.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit an experiment and print its id."""
    body = read_spec(spec)
    with connect(url, patience=FOLLOW_PATIENCE if watch else 1.0) as client:
        experiment = client.submit(body)
        print_id(experiment, watch=watch, as_json=as_json)
        if watch:
            raise typer.Exit(follow(client, experiment["id"], as_json=as_json))


def watch(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Follow an experiment until it has ended, then print its results. Exit code 1 if it failed or was canceled."""
    with connect(url, patience=FOLLOW_PATIENCE) as client:
        client.experiment(id)
        raise typer.Exit(follow(client, id, as_json=as_json))


def list_(
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or canceled.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the dataset, or imported/KEY.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    attack: Annotated[str | None, typer.Option(help="Name of the attack.")] = None,
    defense: Annotated[str | None, typer.Option(help="Name of a defense.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="KEY:VALUE or KEY; -KEY: without it. May be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of experiments.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List experiments, newest first."""
    filters = without_none(
        status=status, dataset=dataset, model=model, attack=attack, defense=defense, tag=tag
    )
    with connect(url) as client:
        experiments = list(islice(client.experiments(**filters, limit=min(limit, PAGE_SIZE)), limit))
    print_result(experiments, as_json, experiments_table(experiments))


def logs(
    id: ExperimentId,
    tail: Annotated[int, typer.Option(min=1, max=10_000, help="Number of lines, from the end.")] = 1000,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print the workers' log of an experiment."""
    with connect(url) as client:
        lines = client.logs(id, tail=tail)
    if as_json:
        print_json(lines)
    else:
        for line in lines:
            print_text(f"{line['at']} {printable(line['message'])}")


def cancel(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel an experiment. One that is running stops within one batch."""
    with connect(url) as client:
        _print_status(client.cancel(id), as_json)


def retry(id: ExperimentId, url: Url = None, as_json: AsJson = False) -> None:
    """Requeue an experiment that has ended."""
    with connect(url) as client:
        _print_status(client.retry(id), as_json)


def predict(
    id: ExperimentId,
    index: Annotated[int | None, typer.Option(min=0, help="Index of an image in the test set.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to upload instead.")] = None,
    triggered: Annotated[bool, typer.Option("--triggered", help="Apply the attack's trigger.")] = False,
    seed: Annotated[int | None, typer.Option(help="Use the models of this seed. Default: the first.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the models' input to this PNG.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Classify one image with every arm's model."""
    if (index is None) == (image is None):
        raise CommandError("give either --index N or --image FILE")
    uploaded = _read_bytes(image) if image else None
    with connect(url) as client:
        prediction = client.predict(id, index=index, image=uploaded, triggered=triggered, seed=seed)
    if picture:
        picture.write_bytes(base64.b64decode(prediction["picture"]))
    label = prediction["image"].get("label_name")
    rows = [
        (a["arm"], a["class_name"], f"{100 * max(a['probabilities']):.1f} %", _verdict(a.get("detection")))
        for a in prediction["arms"]
    ]
    # Most experiments have no input detection, and so no verdict to show.
    columns = ("arm", "class", "probability", "input detection")[: 4 if any(row[3] for row in rows) else 3]
    title = f"true class: {label}" if label else ""
    table = text_table(title, columns, [row[: len(columns)] for row in rows])
    print_result(prediction, as_json, table)


def _verdict(detection: dict[str, Any] | None) -> str:
    """The verdict of an arm's input detection, in words; empty without one."""
    if detection is None:
        return ""
    verdict = "flagged" if detection["flagged"] else "not flagged"
    return f"{verdict} ({detection['suspicion']:.4g}, threshold {detection['threshold']:.4g})"


def catalog(url: Url = None, as_json: AsJson = False) -> None:
    """List the attacks, defenses, datasets and models that the service offers."""
    with connect(url) as client:
        entries = client.catalog()
    if as_json:
        print_json(entries)
        return
    for kind in ("attacks", "defenses", "datasets", "models"):
        rows = [(entry["name"], entry["summary"]) for entry in entries[kind]]
        out.print(text_table(kind, ("name", "summary"), rows))


def read_spec(source: str) -> dict[str, Any]:
    """The JSON object in the file ``source``, or on standard input if it is ``-``."""
    text = sys.stdin.buffer.read() if source == "-" else _read_bytes(Path(source))
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(spec, dict):
        raise CommandError(f"{source} does not contain a JSON object")
    return spec


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error


def _print_status(experiment: Experiment, as_json: bool) -> None:
    print_result(experiment, as_json, f"{experiment['id']} {experiment['status']}")
