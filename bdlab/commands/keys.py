"""`bdlab keys`: make, list and revoke API keys, and set limits.

These work on the database itself, with the settings of the service, because the first key must come from somewhere.
"""

import getpass
import os
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.settings import Settings
from bdlab.commands.common import NO_SERVICE, NOT_FOUND, AsJson, CommandError, out, print_json
from bdlab.commands.tables import plain

app = typer.Typer(
    help="Make, list and revoke API keys, and set owners' limits; where the service's settings are."
)

Most = Annotated[int | None, typer.Option(min=0, show_default=False)]


@app.command()
def create(
    owner: Annotated[
        str,
        typer.Option(
            help="For whom: a person, a team or a project. `local` owns what was made without a key."
        ),
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
    """Make a key and print it, this once. The first one closes the service to all who have none."""
    from app.team.keys import service  # noqa: PLC0415  # the client's commands need no database
    from app.team.keys.schemas import KeyRequest  # noqa: PLC0415
    from app.team.keys.secrets import Pepper  # noqa: PLC0415

    try:
        asked = KeyRequest.model_validate(
            {
                "owner": owner,
                "scopes": scope or ["read", "write"],
                "label": label,
                "expires_in_days": expires_in_days,
            }
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise CommandError(f"{fault['loc'][0]} = {fault['input']!r}: {fault['msg']}") from None

    def make(database: Any, settings: Settings) -> Any:
        made = service.create(database, Pepper(settings), asked)
        _note(database, "bdlab keys create", f"/v1/keys/{made.prefix}")
        return made

    made = _on_database(make)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        typer.echo(made.key)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List all keys, the newest first."""
    from app.team.keys import service  # noqa: PLC0415

    keys = _on_database(lambda database, _settings: service.all_keys(database))
    if as_json:
        print_json([key.model_dump(mode="json") for key in keys])
        return
    rows = [
        [k.prefix, k.owner, " ".join(k.scopes), k.label, _day(k.created_at), _state(k), _day(k.last_used_at)]
        for k in keys
    ]
    out.print(plain("", ["prefix", "owner", "scopes", "label", "made", "state", "last used"], rows))


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's prefix, its id, or the key itself.")],
    as_json: AsJson = False,
) -> None:
    """Make a key useless, at once."""
    from app.team.keys import service  # noqa: PLC0415

    def make_useless(database: Any, _settings: Settings) -> Any:
        revoked = service.revoke(database, key)
        _note(database, "bdlab keys revoke", f"/v1/keys/{revoked.prefix}")
        return revoked

    revoked = _on_database(make_useless)
    if as_json:
        print_json(revoked.model_dump(mode="json"))
    else:
        typer.echo(f"revoked {revoked.prefix} of {revoked.owner}")


@app.command()
def limits(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="The owner's name.")],
    queued: Most = None,
    running: Most = None,
    device_seconds: Most = None,
    stored_bytes: Annotated[int | None, typer.Option("--bytes", min=0, show_default=False)] = None,
    webhooks: Most = None,
    requests: Annotated[int | None, typer.Option(min=1, show_default=False, help="A minute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set an owner's own limits, all at once: one that is not given is as in the settings again."""
    from app.team.keys import service  # noqa: PLC0415
    from app.team.keys.schemas import LimitsIn  # noqa: PLC0415

    chosen = LimitsIn(
        queued=queued,
        running=running,
        device_seconds=device_seconds,
        bytes=stored_bytes,
        webhooks=webhooks,
        requests=requests,
    )

    def change(database: Any, _settings: Settings) -> Any:
        changed = service.set_limits(database, owner, chosen)
        _note(database, "bdlab keys limits", f"/v1/owners/{owner}/limits")
        return changed

    changed = _on_database(change)
    if as_json:
        print_json(changed.model_dump(mode="json"))
    else:
        own = {name: value for name, value in chosen.model_dump().items() if value is not None}
        text = ", ".join(f"{name} {value}" for name, value in own.items())
        typer.echo(f"{owner}: {text or 'as in the settings'}")


def _note(database: Any, words: str, location: str) -> None:
    """Have it in the audit log, where requests that do the same are."""
    from app.team.audit.middleware import of_command  # noqa: PLC0415

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container a user need not have a name
        user = f"user {os.getuid()}"
    with database.writing() as session:
        session.add(of_command(user, words, location))


def _on_database(work: Any) -> Any:
    """``work(database, settings)`` on the current schema, with errors as the command line tells them."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from app.core.database import Database  # noqa: PLC0415
    from app.core.errors import NotFoundError  # noqa: PLC0415
    from app.operations import schema  # noqa: PLC0415

    settings = Settings()
    try:
        schema.upgrade(settings.database)
        database = Database(settings.database)
        try:
            return work(database, settings)
        finally:
            database.close()
    except NotFoundError as error:
        raise CommandError(error.detail, NOT_FOUND) from None
    except SQLAlchemyError as error:
        raise CommandError(f"the database: {str(error).splitlines()[0]}", NO_SERVICE) from error


def _state(key: Any) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "good"
    expired = key.expires_at <= datetime.now(key.expires_at.tzinfo)
    return f"{'expired' if expired else 'good until'} {_day(key.expires_at)}"


def _day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at is not None else "-"
