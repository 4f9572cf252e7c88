"""What every subcommand shares: options, the address, how to print, and what the exit codes mean."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.settings import Settings
from bdlab.base_client import Client

OK, FAILED, BAD_INPUT, NO_SERVICE, NOT_FOUND = 0, 1, 2, 3, 4
"""Exit codes: done; the experiment failed or was canceled; refused; nothing answers; no such thing."""

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="BDLAB_URL",
        show_default=False,
        help="Address of the service. Default: that of `bdlab up` on this machine.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExperimentId = Annotated[str, typer.Argument(metavar="ID", help="The experiment's id.")]

FILE_WIDTH = 200
"""Columns of a table that goes to a file or another program, which has no width of its own."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
"""For results: standard output."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""For progress and remarks: standard error."""


class CommandError(Exception):
    """Ends the command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def connect(url: str | None, *, patience: float = 1.0) -> Client:
    """A client for ``url``, or for the service that `bdlab up` started under BDLAB_HOME, or the default address."""
    return Client(url or address(Settings().home_dir) or DEFAULT_URL, patience=patience)


def address(home: Path) -> str | None:
    """What `bdlab up` wrote when it became ready; None if no service runs on this home."""
    try:
        return (home / "address").read_text().strip() or None
    except OSError:
        return None


def print_json(value: Any) -> None:
    """``value`` on one line of standard output."""
    typer.echo(json.dumps(value))


def without_none(**values: Any) -> dict[str, Any]:
    """The arguments that were given."""
    return {key: value for key, value in values.items() if value not in (None, [])}
