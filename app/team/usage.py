"""Counts device time, in the transaction in which an attempt ends."""

from datetime import datetime

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.tables.keys import DeviceTime


def add(session: Session, owner_id: str, began: datetime, ended: datetime) -> None:
    """Add the time between to the owner's, on the day on which it ended."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    seconds = max(0.0, (ended - began).total_seconds())
    row = insert(DeviceTime).values(owner_id=owner_id, day=ended.date(), seconds=seconds)
    total = DeviceTime.seconds + row.excluded.seconds
    session.execute(row.on_conflict_do_update(index_elements=["owner_id", "day"], set_={"seconds": total}))
