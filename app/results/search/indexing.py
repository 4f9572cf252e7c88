"""Keeping the index of results and the leaderboard as the results are, in the caller's transaction.

Whoever writes or deletes rows of `result_values` calls `refresh`; whoever deletes an experiment calls `forget`
just before. Both may be called again without harm.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.results.search.facts import Arm, arm_of, dataset_label, facts
from app.specs.base import digest
from app.specs.experiment import CLEAN, UNDEFENDED
from app.specs.metrics import EFFECTIVENESS, defense_effectiveness, summarize
from app.specs.stored import StoredSpec, completed
from app.tables.experiments import Experiment
from app.tables.leaderboard import LeaderboardSetting, LeaderboardValue
from app.tables.results import ResultValue
from app.tables.search import LONGEST_TEXT, ResultMean, ResultRow, SpecNumber, SpecPart, SpecText

STAND_INS = 100
"""How many of the newest experiments with an equal setting are looked at when one is deleted."""

Values = dict[int, dict[str, float | None]]
"""Seed -> metric -> value."""


class _Source(NamedTuple):
    id: str
    owner_id: str
    name: str
    created_at: Any
    spec: StoredSpec


def refresh(session: Session, experiment_id: str, arm: str) -> None:
    """Bring the index up to date with an arm's numbers; with the undefended arm's, what derives from them too."""
    source = _source(session, experiment_id)
    if source is None or arm not in source.spec.arms:
        return
    values = _values(session, experiment_id)
    arms = source.spec.arms if arm == UNDEFENDED else (arm,)
    for name in arms:
        _write(session, source, name, values.get(name, {}), values.get(UNDEFENDED, {}))


def refresh_all(session: Session, experiment_id: str) -> None:
    """Bring the index up to date with every arm of an experiment."""
    source = _source(session, experiment_id)
    if source is not None:
        values = _values(session, experiment_id)
        for arm in source.spec.arms:
            _write(session, source, arm, values.get(arm, {}), values.get(UNDEFENDED, {}))


def forget(session: Session, ids: Sequence[str]) -> None:
    """Take experiments out of the leaderboard; where another one has the same setting, its numbers come in."""
    mine = LeaderboardValue.experiment_id.in_(ids)
    settings = session.scalars(select(LeaderboardValue.setting_id).where(mine).distinct()).all()
    session.execute(delete(ResultRow).where(ResultRow.experiment_id.in_(ids)))
    session.execute(delete(LeaderboardValue).where(mine))
    for setting_id in settings:
        setting = session.get_one(LeaderboardSetting, setting_id)
        _count(session, setting)
        same = select(ResultRow.experiment_id, ResultRow.arm).where(
            ResultRow.setting == setting.setting, ResultRow.owner_id == setting.owner_id
        )
        for other, arm in session.execute(same.order_by(ResultRow.id.desc()).limit(STAND_INS)).all():
            refresh(session, other, arm)


def _source(session: Session, experiment_id: str) -> _Source | None:
    columns = (Experiment.owner_id, Experiment.name, Experiment.created_at, Experiment.spec)
    row = session.execute(select(*columns).where(Experiment.id == experiment_id)).one_or_none()
    if row is None:
        return None
    owner, name, created_at, spec = row
    return _Source(experiment_id, owner, name, created_at, StoredSpec(completed(spec)))


def _values(session: Session, experiment_id: str) -> dict[str, Values]:
    found: dict[str, Values] = {}
    columns = (ResultValue.arm, ResultValue.seed, ResultValue.metric, ResultValue.value)
    for arm, seed, metric, value in session.execute(
        select(*columns).where(ResultValue.experiment_id == experiment_id)
    ):
        found.setdefault(arm, {}).setdefault(seed, {})[metric] = value
    return found


def _write(session: Session, source: _Source, arm: str, values: Values, undefended: Values) -> None:
    row = session.scalars(
        select(ResultRow).where(ResultRow.experiment_id == source.id, ResultRow.arm == arm)
    ).one_or_none()
    if not values:
        if row is not None:
            session.delete(row)
            _rank(session, source, arm, arm_of(source.spec, arm), {})
        return
    described = arm_of(source.spec, arm)
    if arm not in (CLEAN, UNDEFENDED):
        for seed, entry in values.items():
            entry[EFFECTIVENESS] = defense_effectiveness(undefended.get(seed, {}), entry)
    if row is None:
        parts = {f"{name}_id": _part(session, name, fields) for name, fields in described.parts.items()}
        row = ResultRow(
            experiment_id=source.id,
            owner_id=source.owner_id,
            arm=arm,
            name=source.name,
            created_at=source.created_at,
            setting=described.setting,
            **parts,
        )
        session.add(row)
    row.seeds = len(values)
    session.flush()
    session.execute(delete(ResultMean).where(ResultMean.row_id == row.id))
    for metric in sorted({name for entry in values.values() for name in entry}):
        summary = summarize(entry.get(metric) for entry in values.values())
        if summary is not None:
            session.add(ResultMean(row_id=row.id, metric=metric, **summary))
    _rank(session, source, arm, described, values)


def _part(session: Session, name: str, fields: Mapping[str, Any]) -> int:
    """The id of a part, which is written if it is new."""
    key = digest([name, fields])
    known = session.scalar(select(SpecPart.id).where(SpecPart.digest == key))
    if known is not None:
        return known
    try:
        with session.begin_nested():
            part = SpecPart(digest=key)
            session.add(part)
            session.flush()
            for path, value in facts(name, dict(fields)):
                session.add(
                    SpecText(part_id=part.id, path=path, value=value[:LONGEST_TEXT])
                    if isinstance(value, str)
                    else SpecNumber(part_id=part.id, path=path, value=value)
                )
            return part.id
    except IntegrityError:  # another worker wrote it at the same time
        return session.scalars(select(SpecPart.id).where(SpecPart.digest == key)).one()


def _rank(session: Session, source: _Source, arm: str, described: Arm, values: Values) -> None:
    """Put an arm's numbers into the leaderboard, in the place of those that it had there."""
    setting = _setting(session, source, described)
    session.execute(
        delete(LeaderboardValue).where(
            LeaderboardValue.setting_id == setting.id,
            LeaderboardValue.experiment_id == source.id,
            LeaderboardValue.arm == arm,
        )
    )
    for seed in _newer(session, setting, source.id, values):
        entry = values[seed]
        session.merge(
            LeaderboardValue(
                setting_id=setting.id,
                seed=seed,
                experiment_id=source.id,
                arm=arm,
                clean_accuracy=entry.get("clean_accuracy"),
                attack_success_rate=entry.get("attack_success_rate"),
                defense_effectiveness=entry.get(EFFECTIVENESS),
            )
        )
    session.flush()
    _count(session, setting)


def _newer(
    session: Session, setting: LeaderboardSetting, experiment_id: str, seeds: Collection[int]
) -> list[int]:
    """The seeds for which no newer experiment has numbers; ids sort by age."""
    taken = session.execute(
        select(LeaderboardValue.seed, LeaderboardValue.experiment_id).where(
            LeaderboardValue.setting_id == setting.id, LeaderboardValue.seed.in_(seeds)
        )
    )
    newest = dict(taken.all())
    return [seed for seed in seeds if newest.get(seed, "") <= experiment_id]


def _setting(session: Session, source: _Source, described: Arm) -> LeaderboardSetting:
    mine = (
        LeaderboardSetting.owner_id == source.owner_id,
        LeaderboardSetting.setting == described.setting,
    )
    query = select(LeaderboardSetting).where(*mine)
    known = session.scalars(query).one_or_none()
    if known is not None:
        return known
    attack = described.parts["attack"] if described.defense != CLEAN else {"name": "none"}
    try:
        with session.begin_nested():
            made = LeaderboardSetting(
                owner_id=source.owner_id,
                setting=described.setting,
                dataset=dataset_label(described.parts["dataset"]),
                model=described.parts["model"]["name"],
                attack=attack["name"],
                defense=described.defense,
                poisoning_rate=attack.get("poisoning_rate"),
                seeds=0,
            )
            session.add(made)
            session.flush()
            return made
    except IntegrityError:
        return session.scalars(query).one()


def _count(session: Session, setting: LeaderboardSetting) -> None:
    setting.seeds = session.scalar(select(func.count()).where(LeaderboardValue.setting_id == setting.id)) or 0
    session.flush()
