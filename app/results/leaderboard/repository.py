"""Queries about the leaderboard."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import CTE, Row, String, column, select, text, tuple_
from sqlalchemy.orm import Session

from app.tables.leaderboard import LeaderboardSetting, LeaderboardValue

MOST_BOARDS = 100
SeedRow = Row[*tuple[Any, ...]]
"""One seed of a setting: its experiment and its numbers."""


def boards(session: Session) -> list[tuple[str, str]]:
    """The pairs of dataset and model that have results, sorted; at most `MOST_BOARDS`."""
    pairs: list[tuple[str, str]] = []
    pair = (LeaderboardSetting.dataset, LeaderboardSetting.model)
    first = select(*pair).where(LeaderboardSetting.seeds > 0).order_by(*pair).limit(1)
    # One index lookup for each pair: SELECT DISTINCT would read every setting.
    while len(pairs) < MOST_BOARDS:
        row = session.execute(first.where(tuple_(*pair) > pairs[-1]) if pairs else first).one_or_none()
        if row is None:
            break
        pairs.append((row.dataset, row.model))
    return pairs


def best_settings(
    session: Session,
    dataset: str,
    model: str,
    pairs: Iterable[tuple[str, str]],
    poisoning_rate: float | None,
) -> Sequence[LeaderboardSetting]:
    """For each pair of attack and defense the setting with the most seeds, the newest among equals."""
    pair = _pairs_table(tuple(pairs))
    candidates = select(LeaderboardSetting.id).where(
        LeaderboardSetting.dataset == dataset,
        LeaderboardSetting.model == model,
        LeaderboardSetting.attack == pair.c.attack,
        LeaderboardSetting.defense == pair.c.defense,
        LeaderboardSetting.seeds > 0,
    )
    if poisoning_rate is not None:
        candidates = candidates.where(LeaderboardSetting.poisoning_rate == poisoning_rate)
    best = candidates.order_by(LeaderboardSetting.seeds.desc(), LeaderboardSetting.id.desc()).limit(1)
    ids = session.scalars(select(best.correlate(pair).scalar_subquery()).select_from(pair)).all()
    query = select(LeaderboardSetting).where(LeaderboardSetting.id.in_([i for i in ids if i is not None]))
    return session.scalars(query).all()


@cache
def _pairs_table(pairs: tuple[tuple[str, str], ...]) -> CTE:
    """The pairs as a table. Literals instead of parameters, so that the statement is compiled only once.

    VALUES, since SQLite allows only 500 SELECTs in a union, and there are more pairs.
    """
    for name in {name for pair in pairs for name in pair}:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is not a valid name of an attack or a defense")
    # Both SQLite and PostgreSQL name the columns of VALUES so.
    rows = ", ".join(f"('{attack}', '{defense}')" for attack, defense in pairs)
    table = f"SELECT column1 AS attack, column2 AS defense FROM (VALUES {rows}) AS pairs"
    return text(table).columns(column("attack", String), column("defense", String)).cte("wanted")


def seeds(session: Session, settings: Sequence[LeaderboardSetting]) -> dict[int, list[SeedRow]]:
    """The seeds of each setting, by its id."""
    columns = (
        LeaderboardValue.setting_id,
        LeaderboardValue.experiment_id,
        LeaderboardValue.clean_accuracy,
        LeaderboardValue.attack_success_rate,
        LeaderboardValue.defense_effectiveness,
    )
    rows: dict[int, list[SeedRow]] = {setting.id: [] for setting in settings}
    query = select(*columns).where(LeaderboardValue.setting_id.in_(rows))
    for row in session.execute(query.order_by(LeaderboardValue.setting_id, LeaderboardValue.seed)):
        rows[row.setting_id].append(row)
    return rows
