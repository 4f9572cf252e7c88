"""Upgrades the database to the schema that the code expects.

Revisions are in the package ``migrations``. To add one, change `app.tables`, then call `revise` with the URL of a
database that is at the newest revision.
"""

from importlib.resources import files
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from app.core.database import make_engine
from app.settings import hide_password
from app.tables import Base

OPTIONAL_INDEX = "ix_experiments_name_parts"
"""An index that only PostgreSQL has, and only if its extension may be created (revision 0015)."""


class NewerSchemaError(Exception):
    """A newer version of the code has migrated the database."""


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the database at ``url`` if it is not current. Several processes may call this at once.

    Raises NewerSchemaError.
    """

    def work(config: Config) -> None:
        current = revision_of(config.attributes["connection"])
        if current is not None and not is_known(current):
            raise NewerSchemaError(
                f"the database {hide_password(url, url)} was migrated by a newer version, to revision {current}; "
                f"this version knows revisions up to {head()}: update backdoor-lab"
            )
        config.attributes["connection"].rollback()  # Alembic begins its own transaction
        command.upgrade(config, revision)

    _run(url, work)


def downgrade(url: str, revision: str = "base") -> None:
    """Downgrade to ``revision``."""
    _run(url, lambda config: command.downgrade(config, revision))


def revise(url: str, message: str) -> None:
    """Write a new revision from the difference between the tables and the database at ``url``."""
    _run(url, lambda config: command.revision(config, message, autogenerate=True))


def differences(engine: Engine) -> list[Any]:
    """Differences between the tables in the code and those of the database."""

    def compared(_thing: Any, name: str | None, _type: str, _reflected: bool, _other: Any) -> bool:
        return name != OPTIONAL_INDEX

    with engine.execution_options(readonly=True).connect() as connection:
        options = {"compare_type": True, "include_object": compared}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Base.metadata))


def revision_of(connection: Connection) -> str | None:
    """The database's revision."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str | None:
    """The newest revision."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_known(revision: str) -> bool:
    """Whether this version has the revision; false if a newer version migrated the database."""
    return any(
        script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions()
    )


def _config() -> Config:
    config = Config()
    # The path may contain a %, which the configuration would interpolate.
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    return config


def _run(url: str, work: Any) -> None:
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # Batch mode copies a table and drops the old one, which must not cascade to rows that refer to it.
                driver: Any = connection.connection.driver_connection
                driver.execute("PRAGMA foreign_keys=OFF")
            config = _config()
            config.attributes["connection"] = connection
            work(config)
    finally:
        engine.dispose()
