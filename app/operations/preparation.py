"""What has to be right before `bdlab up` starts its processes: the schema, the keys, broker and object store."""

import threading
import time
from collections.abc import Callable
from contextlib import closing

from sqlalchemy.exc import SQLAlchemyError

from app.core.broker import Broker
from app.core.database import Database
from app.core.objects import Objects
from app.core.security import is_loopback
from app.operations import schema
from app.operations.doctor.findings import first_line
from app.settings import Settings, hide_password
from app.specs.placement import CPU
from app.team.keys.repository import any_key

PROBE_SECONDS = 8.0
"""For broker and object store to answer."""


def find_obstacle(settings: Settings, host: str) -> str | None:
    """Upgrade the schema, and check everything else. Returns why the service cannot start, for the user."""
    return _upgrade_schema(settings) or _check_keys(settings, host) or _check_backends(settings)


def _upgrade_schema(settings: Settings) -> str | None:
    try:
        schema.upgrade(settings.database)
    except schema.NewerSchemaError as error:
        return str(error)
    except (SQLAlchemyError, OSError) as error:
        name = hide_password(settings.database, settings.database)
        return f"the database {name} cannot be opened or upgraded: {first_line(error)}"
    return None


def _check_keys(settings: Settings, host: str) -> str | None:
    """Without API keys, print a warning; it is an obstacle if other machines could connect."""
    database = Database(settings.database)
    try:
        with database.reading() as session:
            if any_key(session):
                return None
    finally:
        database.close()
    if not is_loopback(host):
        return (
            f"host {host!r} can be reached from other machines, but there is no API key; create one with "
            "`bdlab keys create`, or listen on 127.0.0.1"
        )
    print(
        "bdlab: there is no API key: every local request is accepted; `bdlab keys create` restricts access",
        flush=True,
    )
    return None


def _check_backends(settings: Settings) -> str | None:
    """Whether broker and object store answer, which else would only be known at the timeout."""

    def ask_broker() -> None:
        with closing(Broker(settings.broker)) as broker:
            broker.pending(CPU)

    probes: dict[str, Callable[[], object]] = {
        "objects": lambda: Objects(settings.objects).exists("sha256"),
        "broker": ask_broker,
    }
    if not settings.broker_url:
        del probes["broker"]  # it does not run yet
    reasons = dict.fromkeys(probes, f"it does not answer within {PROBE_SECONDS:.0f} s")

    def probe(name: str) -> None:
        try:
            probes[name]()
        except Exception as error:  # an invalid URL raises different exceptions
            reasons[name] = first_line(error)
        else:
            reasons[name] = ""

    threads = [threading.Thread(target=probe, args=[name], daemon=True) for name in probes]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for name, reason in reasons.items():
        if reason:
            url = getattr(settings, name)
            return f"BDLAB_{name.upper()}_URL={hide_password(url, url)} cannot be used: {reason}"
    return None
