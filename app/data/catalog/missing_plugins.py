"""Attacks, defenses and architectures of stored experiments that no class of this process defines."""

import logging

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.data.catalog.service import names
from app.specs.plugins import VARIABLE
from app.tables.experiments import Experiment, Label

log = logging.getLogger(__name__)


def missing_plugins(database: Database) -> list[str]:
    """Their names, over the experiments of all owners."""
    attacks = select(Experiment.attack).distinct()
    defenses = select(Label.key).where(Label.kind == "defense").distinct()
    models = select(Experiment.model).distinct()
    with database.whole.reading() as session:
        missing = set(session.scalars(attacks)) - set(names("attack"))
        missing |= {label.partition("/")[0] for label in session.scalars(models)} - set(names("model"))
        missing |= set(session.scalars(defenses)) - set(names("defenses"))
    return sorted(missing)


def warn_of_missing_plugins(database: Database) -> None:
    """Log one warning if there are any. Does nothing if the database cannot be read or is not migrated yet."""
    try:
        missing = missing_plugins(database)
    except SQLAlchemyError:
        return
    if missing:
        log.warning(
            "no plug-in in %s defines %s; their experiments can only be read", VARIABLE, ", ".join(missing)
        )
