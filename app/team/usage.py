"""Counts device time, in the transaction in which an attempt ends."""

from datetime import datetime

from sqlalchemy.orm import Session

from app.core.upsert import upsert
from app.tables.keys import DeviceTime


def add(session: Session, owner_id: str, started_at: datetime, ended_at: datetime) -> None:
    """Add the time of an attempt to the owner's device time, on the day on which the attempt ended."""
    seconds = max(0.0, (ended_at - started_at).total_seconds())
    row = {"owner_id": owner_id, "day": ended_at.date(), "seconds": seconds}
    upsert(
        session,
        DeviceTime,
        [row],
        ["owner_id", "day"],
        lambda new: {"seconds": DeviceTime.seconds + new.seconds},
    )
