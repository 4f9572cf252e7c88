"""The table of counters that processes without a port share."""

from sqlalchemy import Float, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class SharedCounter(Base):
    """A sample of a Prometheus counter or histogram, summed over all processes that Prometheus does not scrape.

    Each process adds to one of a few ``shard`` rows, so that many processes do not wait for the lock of one row.
    """

    __tablename__ = "tallies"

    sample: Mapped[str] = mapped_column(String(100), primary_key=True)
    labels: Mapped[str] = mapped_column(String(300), primary_key=True)
    """Names and values as a JSON object with sorted keys."""
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Float)
