"""Tables of API keys, and of the device time that owners have used."""

from datetime import date, datetime

from sqlalchemy import Date, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base, Json, UtcDateTime, new_id
from app.tables.owners import Owner


class ApiKey(Base):
    """A key that acts for an owner. ``digest`` is the HMAC of the whole key under the pepper; the key itself is
    shown once and stored nowhere. Rows are never deleted: one that is there, even revoked, closes the service."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=new_id)
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    digest: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    label: Mapped[str] = mapped_column(String(100), default="")
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    owner: Mapped[Owner] = relationship(lazy="joined", innerjoin=True)


class DeviceTime(Base):
    """Seconds for which workers ran an owner's experiments, by the UTC day on which each attempt ended.

    It outlives the experiments, so that deleting one gives no time back.
    """

    __tablename__ = "device_time"

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    seconds: Mapped[float]
