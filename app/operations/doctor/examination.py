"""All checks, in the order in which one needs another."""

import os
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from app.operations.doctor import brokers, databases, environment, exposure, machine, progress, stores
from app.operations.doctor.findings import Check, Finding, Patient, error, reason
from app.settings import Settings

CHECKS: dict[str, Check] = {
    "settings": environment.settings,
    "home": environment.home,
    "secret": environment.secret,
    "database": databases.database,
    "broker": brokers.broker,
    "objects": stores.objects,
    "data sets": stores.data_sets,
    "workers": progress.workers,
    "relay": progress.relay,
    "plug-ins": progress.plug_ins,
    "torch": machine.torch,
    "disk": machine.disk,
    "keys": exposure.keys,
}


def examine(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Every finding, as it is made. Nothing is raised, whatever the settings are."""
    yield from environment.unknown(environ)
    try:
        patient = Patient(Settings())
    except ValidationError as fault:
        yield from environment.refused(fault)
        return
    try:
        for name, check in CHECKS.items():
            try:
                yield from check(patient)
            except Exception as fault:  # a check that breaks has found something too
                yield error(name, f"{type(fault).__name__}: {reason(fault)}", "see docs/deployment.md")
    finally:
        if patient.database is not None:
            patient.database.close()
