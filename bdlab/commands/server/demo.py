"""`bdlab demo`: starts a service of its own, runs one experiment over HTTP, and explains the results."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import app
from bdlab.client import Client
from bdlab.commands.common import NO_SERVICE, OK, AsJson, CommandError, err, out, print_json, read_address
from bdlab.commands.experiments import read_spec
from bdlab.commands.following import follow

if TYPE_CHECKING:
    from app.operations.child_process import Child

SPEC = Path(app.__file__).parent.parent / "examples" / "digits-badnets-abl.json"
START_SECONDS = 300.0
STOP_SECONDS = 60.0


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the service running afterwards, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Attack a model and defend it, end to end: half a minute on two cores, no download, no GPU."""
    from app.settings import Settings

    folder = Settings().home_dir / "demo"
    home = folder / "home"
    address = read_address(home)
    if address and Client(address, patience=0).ready():
        raise CommandError(f"a demo is already running at {address}; stop it first")
    shutil.rmtree(folder, ignore_errors=True)  # with cached stages a demo would not train
    home.mkdir(parents=True)
    with _start_service(home, folder / "service.log") as (service, url), Client(url, patience=30) as client:
        code = _run_experiment(client, folder, as_json)
        if keep and code == OK:
            err.print(f"\nThe service is running: dashboard at {url}, API at {url}/docs. Ctrl-C stops it.")
            with suppress(KeyboardInterrupt):
                if service.process is not None:
                    service.process.wait()
    raise typer.Exit(code)


def _run_experiment(client: Client, folder: Path, as_json: bool) -> int:
    """Submit the example, follow it, and save its results; returns the exit code."""
    from app.results.numbers.interpretation import findings

    id = client.submit(read_spec(str(SPEC)))["id"]
    err.print(f"Submitted {SPEC.name} to {client.url} as experiment {id}")
    err.print(f"Watch it at {client.url}/experiments/{id}", soft_wrap=True)
    code = follow(client, id, as_json=as_json)
    if code != OK:
        return code
    results = client.results(id)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figures = [
        client.download(artifact, folder / "figures" / artifact["name"].replace("/", "-"))
        for artifact in client.artifacts(id, kind="figure")
    ]
    if as_json:
        print_json({"experiment_id": id, "results": results, "figures": [str(path) for path in figures]})
        return OK
    out.print(" ".join(finding.text for finding in findings(results["arms"], client.experiment(id)["spec"])))
    out.print(f"\nNumbers: {_short_path(folder / 'results.json')}\nFigures:")
    for path in figures:
        out.print(f"  {_short_path(path)}")
    return OK


@contextmanager
def _start_service(home: Path, log: Path) -> "Iterator[tuple[Child, str]]":
    """`bdlab up` on a free port as a child process, with default settings; gives the process and its address."""
    from app.operations.child_process import Child

    environment = {key: value for key, value in os.environ.items() if not key.startswith("BDLAB_")}
    environment["BDLAB_HOME"] = str(home)
    service = Child("service", [sys.executable, "-m", "bdlab.cli", "up", "--port", "0"], log, environment)
    # SIGTERM raises SystemExit, so that `finally` stops the service.
    previous_handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    service.start()
    try:
        with err.status("Starting the service") if err.is_terminal else nullcontext():
            url = _wait_until_ready(service, home)
        yield service, url
    finally:
        service.terminate()
        service.wait(time.monotonic() + STOP_SECONDS)
        signal.signal(signal.SIGTERM, previous_handler)


def _wait_until_ready(service: "Child", home: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        url = read_address(home)
        if url and Client(url, patience=0).ready():
            return url
        if service.has_died():
            raise CommandError(
                f"the service did not start: {service.tail(1)} (see {service.log})", NO_SERVICE
            )
        time.sleep(0.1)
    raise CommandError(f"the service is not ready after {START_SECONDS:.0f} s; see {service.log}", NO_SERVICE)


def _short_path(path: Path) -> str:
    """Relative to the current folder if it is below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
