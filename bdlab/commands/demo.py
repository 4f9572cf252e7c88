"""`bdlab demo`: a service of its own, one experiment over HTTP, and what came of it in plain words."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

import app
from app.operations.child_process import Child
from app.results.numbers.interpretation import findings
from app.settings import Settings
from bdlab.base_client import Client
from bdlab.commands.common import NO_SERVICE, OK, AsJson, CommandError, address, err, out, print_json
from bdlab.commands.experiments import read_spec
from bdlab.commands.following import follow

SPEC = Path(app.__file__).parent.parent / "examples" / "digits-badnets-abl.json"
START_SECONDS = 300.0
STOP_SECONDS = 60.0


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the service up afterwards, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Attack a model and defend it, end to end: about a minute on two cores, no download, no GPU."""
    folder = Settings().home_dir / "demo"
    home = folder / "home"
    running = address(home)
    if running and Client(running, patience=0).ready():
        raise CommandError(f"a demo is still up at {running}; stop it first")
    shutil.rmtree(folder, ignore_errors=True)  # with old stages in its cache a demo would train nothing
    home.mkdir(parents=True)
    with _service(home, folder / "service.log") as (service, url), Client(url, patience=30) as client:
        code = _run(client, folder, as_json)
        if keep and code == OK:
            err.print(f"\nThe service is up: dashboard at {url}, API page at {url}/docs. Ctrl-C stops it.")
            _wait_for_end(service)
    raise typer.Exit(code)


def _run(client: Client, folder: Path, as_json: bool) -> int:
    """Submit, follow, and write down what came of it; returns the exit code."""
    id = client.submit(read_spec(str(SPEC)))["id"]
    err.print(f"Submitted {SPEC.name} to {client.url} as experiment {id}")
    err.print(f"Watch it at {client.url}/experiments/{id}", markup=False, soft_wrap=True)
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
    said = findings(results["arms"], client.experiment(id)["spec"])
    out.print(" ".join(finding.text for finding in said))
    out.print(f"\nNumbers: {_shown(folder / 'results.json')}\nFigures:")
    for path in figures:
        out.print(f"  {_shown(path)}", markup=False)
    return OK


@contextmanager
def _service(home: Path, log: Path) -> Iterator[tuple[Child, str]]:
    """`bdlab up` on a free port as a child process, with nothing from the environment but the defaults."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BDLAB_")}
    environment["BDLAB_HOME"] = str(home)
    service = Child("service", [sys.executable, "-m", "bdlab.cli", "up", "--port", "0"], log, environment)
    before = signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that `finally` runs
    service.start()
    try:
        with err.status("Starting the service") if err.is_terminal else nullcontext():
            url = _wait_until_ready(service, home)
        yield service, url
    finally:
        service.terminate()
        service.wait(time.monotonic() + STOP_SECONDS)
        signal.signal(signal.SIGTERM, before)


def _wait_until_ready(service: Child, home: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        url = address(home)
        if url and Client(url, patience=0).ready():
            return url
        if service.process is None or service.process.poll() is not None:
            raise CommandError(
                f"the service did not start: {service.tail(1)} (see {service.log})", NO_SERVICE
            )
        time.sleep(0.1)
    raise CommandError(f"the service is not ready after {START_SECONDS:.0f} s; see {service.log}", NO_SERVICE)


def _wait_for_end(service: Child) -> None:
    """Until Ctrl-C, which is how `--keep` is meant to end, or until the service ends by itself."""
    with suppress(KeyboardInterrupt):
        if service.process is not None:
            service.process.wait()


def _shown(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
