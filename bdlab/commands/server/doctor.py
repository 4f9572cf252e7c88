"""`bdlab doctor`."""

from dataclasses import asdict

import typer

from bdlab.commands.common import FAILED, OK, AsJson, print_json, print_text

LABELS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


def doctor(as_json: AsJson = False) -> None:
    """Check settings, database, broker, object store, workers and this machine, and say how to fix problems.

    Exit code 1 if there is an error; warnings do not count. Run it with the service's settings.
    """
    from app.operations.doctor.examination import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mend = f". To mend it: {finding.mend}" if finding.mend else ""
            print_text(f"{LABELS[finding.state]}  {finding.check}: {finding.detail}{mend}")
    is_broken = any(finding.state == "error" for finding in findings)
    if as_json:
        print_json({"ok": not is_broken, "checks": [asdict(finding) for finding in findings]})
    raise typer.Exit(FAILED if is_broken else OK)
