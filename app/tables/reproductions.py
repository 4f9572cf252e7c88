"""Which experiments reproduce which."""

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Reproduction(Base):
    """An experiment that runs another one again. It stays when the original is deleted, and still names its id."""

    __tablename__ = "reproductions"

    experiment_id: Mapped[str] = mapped_column(
        ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True
    )
    original_id: Mapped[str] = mapped_column(String(36), index=True)
