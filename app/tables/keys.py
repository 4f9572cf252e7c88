"""Tables of API keys and of the device time of owners."""

from datetime import date, datetime

from sqlalchemy import Date, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base, Json, UtcDateTime, new_id
from app.tables.owners import Owner


class ApiKey(Base):
    """A key of an owner. ``digest`` is the HMAC of the key with the pepper; the key itself is not stored.

    Rows are never deleted: the service is open only as long as there is none, not even a revoked one.
    """

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

    Rows outlive the experiments, so deleting an experiment does not reduce the usage.
    """

    __tablename__ = "device_time"

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    seconds: Mapped[float]
