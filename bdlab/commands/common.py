"""What the subcommands share: options, the service's address, output, and exit codes."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.specs.printable import printable, printable_lines
from bdlab.client import Client
from bdlab.progress import PlainConsole

OK, FAILED, BAD_INPUT, NO_SERVICE, NOT_FOUND = 0, 1, 2, 3, 4
"""Exit codes; see `bdlab.cli`."""

DEFAULT_URL = "http://127.0.0.1:8000"
FOLLOW_PATIENCE = 60.0
"""Seconds for which a command that follows an experiment retries: enough for a restart of the service."""
FILE_WIDTH = 200
"""Columns of a table that is written to a file or pipe."""

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="BDLAB_URL",
        show_default=False,
        help="Address of the service. Default: the one started by `bdlab up` on this machine.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExperimentId = Annotated[str, typer.Argument(metavar="ID", help="The experiment's id.")]

out = PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
"""For results: standard output."""
err = PlainConsole(stderr=True, soft_wrap=True)
"""For progress and warnings: standard error."""


class CommandError(Exception):
    """Ends the command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def connect(url: str | None, *, patience: float = 1.0) -> Client:
    """A client for ``url``, or for the service that `bdlab up` started under BDLAB_HOME, or the default address."""
    home = Path(os.environ.get("BDLAB_HOME", "var"))
    return Client(url or read_address(home) or DEFAULT_URL, patience=patience)


def read_address(home: Path) -> str | None:
    """The address that `bdlab up` wrote to ``home`` when it was ready; None if no service runs there."""
    try:
        return (home / "address").read_text().strip() or None
    except OSError:
        return None


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on one line."""
    typer.echo(json.dumps(value))


def print_result(value: Any, as_json: bool, text: Any) -> None:
    """Print ``value`` as JSON if ``as_json``, else ``text``: a string or a rich table."""
    if as_json:
        print_json(value)
    elif isinstance(text, str):
        print_text(text)
    else:
        out.print(text)


def print_text(text: str) -> None:
    """Print lines for people on standard output, with control characters as escapes."""
    typer.echo(printable_lines(text))


def print_document(text: str) -> None:
    """Print a table for programs as it is; on a terminal with control characters as escapes."""
    typer.echo(printable_lines(text) if sys.stdout.isatty() else text, nl=False)


def print_fields(resource: dict[str, Any], as_json: bool) -> None:
    """Print a resource as JSON if ``as_json``, else one line for each field that has a value."""
    if as_json:
        print_json(resource)
        return
    for name, value in resource.items():
        if name != "links" and value not in (None, {}):
            print_text(f"{name}: {printable(value) if isinstance(value, str) else json.dumps(value)}")
