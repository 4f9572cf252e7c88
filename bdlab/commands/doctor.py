"""`bdlab doctor`."""

from dataclasses import asdict

import typer

from bdlab.commands.common import FAILED, OK, AsJson, print_json

MARKS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, broker, object store, workers and this machine, and say how to mend them.

    Exit code 0: nothing is broken, though there may be warnings. 1: something is. Run it where the service's settings
    are.
    """
    from app.operations.doctor.examination import examine  # noqa: PLC0415  # the client's commands need none of it

    found = []
    for finding in examine():
        found.append(finding)
        if not as_json:
            mend = f". To mend it: {finding.mend}" if finding.mend else ""
            typer.echo(f"{MARKS[finding.state]}  {finding.check}: {finding.detail}{mend}")
    broken = any(finding.state == "error" for finding in found)
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(finding) for finding in found]})
    raise typer.Exit(FAILED if broken else OK)
