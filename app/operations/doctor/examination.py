"""All checks, ordered so that each one runs after those it depends on."""

import os
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from app.operations.doctor import backends, configuration, content, machine, processes
from app.operations.doctor.findings import Check, Finding, Installation, error, first_line
from app.settings import Settings

CHECKS: dict[str, Check] = {
    "settings": configuration.check_settings,
    "home": configuration.check_home,
    "secret": configuration.check_secret,
    "database": backends.check_database,
    "broker": backends.check_broker,
    "objects": backends.check_objects,
    "data sets": machine.check_datasets,
    "workers": processes.check_workers,
    "relay": processes.check_relay,
    "plug-ins": processes.check_plugins,
    "torch": machine.check_torch,
    "disk": machine.check_disk,
    "keys": processes.check_keys,
}


def examine(environ: Mapping[str, str] = os.environ, *, verify: bool = False) -> Iterator[Finding]:
    """Run all checks, with ``verify`` also that of all stored content; yields each finding at once. Never raises."""
    yield from configuration.find_unknown_variables(environ)
    try:
        installation = Installation(Settings())
    except ValidationError as invalid:
        yield from configuration.explain_invalid_settings(invalid)
        return
    checks = CHECKS | {content.CHECK: content.check_content} if verify else CHECKS
    for name, check in checks.items():
        try:
            yield from check(installation)
        except Exception as problem:  # a check that fails has found a problem too
            yield error(name, f"{type(problem).__name__}: {first_line(problem)}", "see docs/deployment.md")
    if installation.database is not None:
        installation.database.close()
