"""Brings the database to the schema that the code expects.

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
from app.tables import Base

WHERE_POSSIBLE = "ix_experiments_name_parts"
"""An index that PostgreSQL alone can have, and only where its extension may be made (revision 0015)."""


def upgrade(url: str, revision: str = "head") -> None:
    """Make the database at ``url`` current, if it is not. Several processes may call this at once."""
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str = "base") -> None:
    """Go back to ``revision``."""
    _run(url, lambda config: command.downgrade(config, revision))


def revise(url: str, message: str) -> None:
    """Write a new revision from the difference between the tables and the database at ``url``."""
    _run(url, lambda config: command.revision(config, message, autogenerate=True))


def differences(engine: Engine) -> list[Any]:
    """What the tables in the code have and the database has not, or the other way round."""

    def compared(_thing: Any, name: str | None, _type: str, _reflected: bool, _other: Any) -> bool:
        return name != WHERE_POSSIBLE

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
    """Whether the code knows the revision; it does not if a newer version has migrated the database."""
    return any(
        script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions()
    )


def _config() -> Config:
    config = Config()
    # A folder's name may hold a %, which the configuration would take for interpolation.
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    return config


def _run(url: str, work: Any) -> None:
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # Batch mode copies a table and drops the old one, which must not delete what refers to it.
                driver: Any = connection.connection.driver_connection
                driver.execute("PRAGMA foreign_keys=OFF")
            config = _config()
            config.attributes["connection"] = connection
            work(config)
    finally:
        engine.dispose()
