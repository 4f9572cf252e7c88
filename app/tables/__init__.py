"""Every SQL table, one module a subject. Importing the package imports all of them, so `Base.metadata` is complete."""

from app.core.database import Base
from app.tables import (
    artifacts,
    audit,
    counters,
    experiments,
    keys,
    leaderboard,
    owners,
    reproductions,
    results,
    search,
    sweeps,
    uploads,
    webhooks,
)

__all__ = [
    "Base",
    "artifacts",
    "audit",
    "counters",
    "experiments",
    "keys",
    "leaderboard",
    "owners",
    "reproductions",
    "results",
    "search",
    "sweeps",
    "uploads",
    "webhooks",
]
