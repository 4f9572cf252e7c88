"""Queries about the leaderboard."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import CTE, String, column, select, text, tuple_
from sqlalchemy.orm import Session

from app.tables.leaderboard import LeaderboardSetting, LeaderboardValue

MOST_BOARDS = 100


class SeedRow(NamedTuple):
    """One seed of a setting."""

    setting_id: int
    seed: int
    experiment_id: str
    clean_accuracy: float | None
    attack_success_rate: float | None
    defense_effectiveness: float | None


def boards(session: Session) -> list[tuple[str, str]]:
    """The pairs of data set and model that have results; one look into the index for each."""
    found: list[tuple[str, str]] = []
    pair = (LeaderboardSetting.dataset, LeaderboardSetting.model)
    query = select(*pair).where(LeaderboardSetting.seeds > 0).order_by(*pair).limit(1)
    while len(found) < MOST_BOARDS:
        behind = query if not found else query.where(tuple_(*pair) > found[-1])
        row = session.execute(behind).one_or_none()
        if row is None:
            break
        found.append((row.dataset, row.model))
    return found


def best(
    session: Session,
    dataset: str,
    model: str,
    pairs: Iterable[tuple[str, str]],
    poisoning_rate: float | None,
) -> Sequence[LeaderboardSetting]:
    """For each pair of attack and defense the setting with the most seeds, the newest among equals."""
    wanted = _wanted(tuple(pairs))
    inner = select(LeaderboardSetting.id).where(
        LeaderboardSetting.dataset == dataset,
        LeaderboardSetting.model == model,
        LeaderboardSetting.attack == wanted.c.attack,
        LeaderboardSetting.defense == wanted.c.defense,
        LeaderboardSetting.seeds > 0,
    )
    if poisoning_rate is not None:
        inner = inner.where(LeaderboardSetting.poisoning_rate == poisoning_rate)
    newest = inner.order_by(LeaderboardSetting.seeds.desc(), LeaderboardSetting.id.desc()).limit(1)
    ids = session.scalars(select(newest.correlate(wanted).scalar_subquery()).select_from(wanted)).all()
    chosen = [i for i in ids if i is not None]
    return session.scalars(select(LeaderboardSetting).where(LeaderboardSetting.id.in_(chosen))).all()


@cache
def _wanted(pairs: tuple[tuple[str, str], ...]) -> CTE:
    """The pairs as a table. Written out, and not as parameters, so that the statement is compiled only once."""
    for name in {name for pair in pairs for name in pair}:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name of an attack or a defense")
    rows = " UNION ALL ".join(
        f"SELECT '{attack}' AS attack, '{defense}' AS defense" for attack, defense in pairs
    )
    return text(rows).columns(column("attack", String), column("defense", String)).cte("wanted")


def seeds(session: Session, settings: Sequence[LeaderboardSetting]) -> dict[int, list[SeedRow]]:
    """The numbers of every seed, by setting."""
    columns = (
        LeaderboardValue.setting_id,
        LeaderboardValue.seed,
        LeaderboardValue.experiment_id,
        LeaderboardValue.clean_accuracy,
        LeaderboardValue.attack_success_rate,
        LeaderboardValue.defense_effectiveness,
    )
    ids = [setting.id for setting in settings]
    query = select(*columns).where(LeaderboardValue.setting_id.in_(ids))
    found: dict[int, list[SeedRow]] = {i: [] for i in ids}
    for row in session.execute(query.order_by(LeaderboardValue.setting_id, LeaderboardValue.seed)):
        found[row.setting_id].append(SeedRow(*row))
    return found
