"""Attacks and defenses that stored experiments name and that this process does not know."""

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.data.catalog.service import names
from app.specs.plugins import VARIABLE
from app.tables.experiments import Experiment, Label


class LostPluginError(Exception):
    """A plug-in is gone while experiments name what it defined: their specs cannot be read without it."""


def check(database: Database) -> None:
    """Raises LostPluginError. A database that is away, or not migrated yet, is passed over."""
    attacks = select(Experiment.attack).distinct()
    defenses = select(Label.key).where(Label.kind == "defense").distinct()
    lost = []
    try:
        with database.whole.reading() as session:
            for field, used in (("attack", attacks), ("defenses", defenses)):
                lost += sorted(set(session.scalars(used)) - set(names(field)))
    except SQLAlchemyError:
        return
    if lost:
        raise LostPluginError(
            f"experiments are stored that name {', '.join(lost)}, which no plug-in defines; put the files back "
            f"where {VARIABLE} says"
        )
