"""The leaderboard's cells, kept up to date with every result."""

from sqlalchemy import Float, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, BigId
from app.tables.owners import Owned, owned_index

_PAIR = ("dataset", "model", "attack", "defense")


class LeaderboardSetting(Owned, Base):
    """An attack and a defense with all their fields, on one data set and model. ``seeds``: how many are done.

    Of the settings of a pair the index finds at once the one with the most seeds, and among equals the newest.
    """

    __tablename__ = "leaderboard_settings"
    __table_args__ = (
        UniqueConstraint("owner_id", "setting"),
        owned_index("ix_leaderboard_settings_pair", *_PAIR, "seeds", "id"),
        owned_index("ix_leaderboard_settings_rate", *_PAIR, "poisoning_rate", "seeds", "id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    setting: Mapped[str] = mapped_column(String(16))
    dataset: Mapped[str] = mapped_column(String(80))
    model: Mapped[str] = mapped_column(String(64))
    attack: Mapped[str] = mapped_column(String(64))
    defense: Mapped[str] = mapped_column(String(64))
    poisoning_rate: Mapped[float | None] = mapped_column(Float)
    seeds: Mapped[int] = mapped_column()


class LeaderboardValue(Base):
    """The numbers of one seed of a setting. Where several experiments computed it, those of the newest."""

    __tablename__ = "leaderboard_values"

    setting_id: Mapped[int] = mapped_column(
        ForeignKey("leaderboard_settings.id", ondelete="CASCADE"), primary_key=True
    )
    seed: Mapped[int] = mapped_column(primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"), index=True)
    arm: Mapped[str] = mapped_column(String(64))
    clean_accuracy: Mapped[float | None] = mapped_column(Float)
    attack_success_rate: Mapped[float | None] = mapped_column(Float)
    defense_effectiveness: Mapped[float | None] = mapped_column(Float)
