"""`bdlab keys`: create, list and revoke API keys, and set limits.

These commands work on the database, not through the API, since the first key cannot be created with a key.
"""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdlab.commands.common import AsJson, CommandError, print_result
from bdlab.commands.server.extras import first_fault, needs
from bdlab.commands.tables import text_table

if TYPE_CHECKING:
    from app.core.database import Database
    from app.settings import Settings

app = typer.Typer(help="API keys and owners' limits. Run these commands with the service's settings.")
command = needs("server")

Limit = Annotated[int | None, typer.Option(min=0, show_default=False)]


@app.command(cls=command)
def create(
    owner: Annotated[
        str,
        typer.Option(help="A person, team or project. `local` owns everything created without a key."),
    ] = "local",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated: read, write, artifacts:backdoored, admin. Default: read and write."
        ),
    ] = None,
    label: Annotated[str, typer.Option(help="Who uses the key, and where.")] = "",
    expires_in_days: Annotated[int | None, typer.Option(help="Default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it; it is shown only once. With the first key, all requests need one."""
    from pydantic import ValidationError

    from app.team.keys import service
    from app.team.keys.schemas import KeyRequest
    from app.team.keys.secrets import Pepper

    fields = {
        "owner": owner,
        "scopes": scope or ["read", "write"],
        "label": label,
        "expires_in_days": expires_in_days,
    }
    try:
        request = KeyRequest.model_validate(fields)
    except ValidationError as error:
        field, value, message = first_fault(error)
        raise CommandError(f"{field} = {value!r}: {message}") from None
    with _open_database() as (database, settings):
        key = service.create(database, Pepper(settings), request)
        _audit(database, "bdlab keys create", f"/v1/keys/{key.prefix}")
    print_result(key.model_dump(mode="json"), as_json, key.key)


@app.command("list", cls=command)
def list_(as_json: AsJson = False) -> None:
    """List all keys, newest first."""
    from app.team.keys import service

    with _open_database() as (database, _):
        keys = service.all_keys(database)
    rows = [
        (k.prefix, k.owner, " ".join(k.scopes), k.label, _day(k.created_at), _state(k), _day(k.last_used_at))
        for k in keys
    ]
    headings = ("prefix", "owner", "scopes", "label", "created", "state", "last used")
    print_result([key.model_dump(mode="json") for key in keys], as_json, text_table("", headings, rows))


@app.command(cls=command)
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's prefix, its id, or the key itself.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key."""
    from app.team.keys import service

    with _open_database() as (database, _):
        revoked = service.revoke(database, key)
        _audit(database, "bdlab keys revoke", f"/v1/keys/{revoked.prefix}")
    print_result(revoked.model_dump(mode="json"), as_json, f"revoked {revoked.prefix} of {revoked.owner}")


@app.command(cls=command)
def limits(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="The owner's name.")],
    queued: Limit = None,
    running: Limit = None,
    device_seconds: Limit = None,
    stored_bytes: Annotated[int | None, typer.Option("--bytes", min=0, show_default=False)] = None,
    webhooks: Limit = None,
    requests: Annotated[int | None, typer.Option(min=1, show_default=False, help="Per minute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set an owner's limits, all at once: an omitted limit reverts to the default."""
    from app.team.keys import service
    from app.team.keys.schemas import LimitsIn

    own_limits = LimitsIn(
        queued=queued,
        running=running,
        device_seconds=device_seconds,
        bytes=stored_bytes,
        webhooks=webhooks,
        requests=requests,
    )
    with _open_database() as (database, _):
        changed = service.set_limits(database, owner, own_limits)
        _audit(database, "bdlab keys limits", f"/v1/owners/{owner}/limits")
    values = own_limits.model_dump(exclude_none=True).items()
    text = ", ".join(f"{name} {value}" for name, value in values) or "the defaults"
    print_result(changed.model_dump(mode="json"), as_json, f"{owner}: {text}")


@contextmanager
def _open_database() -> "Iterator[tuple[Database, Settings]]":
    """The service's database, on the current schema, and its settings."""
    from app.core.database import Database
    from app.operations import schema
    from app.settings import Settings

    settings = Settings()
    schema.upgrade(settings.database)
    database = Database(settings.database)
    try:
        yield database, settings
    finally:
        database.close()


def _audit(database: "Database", command: str, location: str) -> None:
    """Add an entry to the audit log, as the equivalent request would."""
    from app.team.audit.middleware import of_command

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container a user need not have a name
        user = f"user {os.getuid()}"
    with database.writing() as session:
        session.add(of_command(user, command, location))


def _state(key: Any) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "good"
    is_expired = key.expires_at <= datetime.now(key.expires_at.tzinfo)
    return f"{'expired' if is_expired else 'good until'} {_day(key.expires_at)}"


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at is not None else "-"
