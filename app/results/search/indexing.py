"""Keeps the search index and the leaderboard consistent with the results, in the caller's transaction.

Code that writes or deletes rows of `result_values` must call `refresh`, and code that deletes experiments must call
`forget` before. Both are idempotent.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Select, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.database import Base
from app.specs.attacks.base import ATTACK_LABELS
from app.specs.base import canonical_json, digest
from app.specs.defenses.base import DEFENSE_LABELS
from app.specs.experiment import CLEAN, UNDEFENDED, UNHASHED_FIELDS
from app.specs.flatten import flatten
from app.specs.metrics import EFFECTIVENESS, defense_effectiveness, summarize
from app.specs.models.base import label_of
from app.specs.stored import StoredSpec, completed, dataset_label
from app.tables.experiments import Experiment
from app.tables.leaderboard import LeaderboardSetting, LeaderboardValue
from app.tables.results import ResultValue
from app.tables.search import LONGEST_TEXT, ResultMean, ResultRow, SpecNumber, SpecPart, SpecText

MAX_REPLACEMENTS = 100
"""When an experiment is deleted, at most this many experiments with an equal setting are ranked again."""

Values = dict[int, dict[str, float | None]]
"""Seed -> metric -> value."""
Inserted = TypeVar("Inserted", bound=Base)
PARTS = ("dataset", "model", "attack", "training", "other", "defense")
_OWN_PLACE = (*UNHASHED_FIELDS, "seeds", "defenses")
_NO_INFLUENCE = ("reference", "device")
"""Fields that do not influence the numbers of an arm."""


class Arm(NamedTuple):
    """An arm of a spec as the index describes it."""

    parts: dict[str, dict[str, Any]]
    """The fields of each of `PARTS`; only a defended arm has the part ``defense``."""
    setting: str
    """16 hexadecimal digits of a hash over everything that decides the numbers of the arm, except the seed."""
    defense: str
    """Name of the defense, or ``clean`` or ``undefended``."""


def describe_arm(spec: StoredSpec, arm: str) -> Arm:
    """The index entry of ``arm``. Of the spec's defenses it includes only the one that makes this arm."""
    document = spec.document
    other = {key: value for key, value in document.items() if key not in {*PARTS, *_OWN_PLACE}}
    parts = {name: document[name] for name in PARTS if name in document} | {"other": other}
    defense = spec.defenses.get(arm)
    if defense is not None:
        parts["defense"] = defense
    deciding = {name: dict(fields) for name, fields in parts.items()}
    deciding["other"] = {key: value for key, value in other.items() if key not in _NO_INFLUENCE}
    for part, labels in (("attack", ATTACK_LABELS), ("defense", DEFENSE_LABELS)):
        for label in labels & deciding.get(part, {}).keys():
            del deciding[part][label]
    if arm == CLEAN:
        deciding["attack"] = {}  # the clean arm is trained without the attack
    name = defense["name"] if defense is not None else arm
    return Arm(parts, digest([name if defense is None else "", deciding])[:16], name)


def indexed_fields(part: str, fields: dict[str, Any]) -> dict[str, float | str]:
    """The fields of a part that are not null, by path. Numbers become floats, everything else becomes text."""
    flat = flatten(fields, "" if part == "other" else part)
    return {path: _indexed(value) for path, value in flat.items() if value is not None}


def _indexed(value: Any) -> float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, str) else canonical_json(value)


def refresh(session: Session, experiment_id: str, arm: str) -> None:
    """Update the index of one arm; for the undefended arm of all arms, whose ratings depend on it."""
    experiment = session.get(Experiment, experiment_id)
    if experiment is None:
        return
    spec = StoredSpec(completed(experiment.spec))
    values = _values(session, experiment_id)
    for name in spec.arms:
        if arm in (name, UNDEFENDED):
            _index_arm(session, experiment, spec, name, values.get(name, {}), values.get(UNDEFENDED, {}))


def forget(session: Session, ids: Sequence[str]) -> None:
    """Remove experiments from the index. On the leaderboard other experiments with the same setting replace them."""
    of_experiments = LeaderboardValue.experiment_id.in_(ids)
    settings = session.scalars(select(LeaderboardValue.setting_id).where(of_experiments).distinct()).all()
    session.execute(delete(ResultRow).where(ResultRow.experiment_id.in_(ids)))
    session.execute(delete(LeaderboardValue).where(of_experiments))
    for setting_id in settings:
        setting = session.get_one(LeaderboardSetting, setting_id)
        _update_seeds(session, setting)
        same_setting = select(ResultRow.experiment_id, ResultRow.arm).where(
            ResultRow.setting == setting.setting, ResultRow.owner_id == setting.owner_id
        )
        newest = same_setting.order_by(ResultRow.id.desc()).limit(MAX_REPLACEMENTS)
        for experiment_id, arm in session.execute(newest).all():
            refresh(session, experiment_id, arm)


def _values(session: Session, experiment_id: str) -> dict[str, Values]:
    values: dict[str, Values] = {}
    columns = (ResultValue.arm, ResultValue.seed, ResultValue.metric, ResultValue.value)
    query = select(*columns).where(ResultValue.experiment_id == experiment_id)
    for arm, seed, metric, value in session.execute(query):
        values.setdefault(arm, {}).setdefault(seed, {})[metric] = value
    return values


def _index_arm(
    session: Session,
    experiment: Experiment,
    spec: StoredSpec,
    arm: str,
    values: Values,
    undefended: Values,
) -> None:
    query = select(ResultRow).where(ResultRow.experiment_id == experiment.id, ResultRow.arm == arm)
    row = session.scalars(query).one_or_none()
    if row is None and not values:
        return
    described = describe_arm(spec, arm)
    if arm not in (CLEAN, UNDEFENDED):
        for seed, metrics in values.items():
            metrics[EFFECTIVENESS] = defense_effectiveness(undefended.get(seed, {}), metrics)
    _rank(session, experiment, arm, described, values)
    if row is not None and not values:
        session.delete(row)
        return
    if row is None:
        parts = {f"{name}_id": _part_id(session, name, fields) for name, fields in described.parts.items()}
        row = ResultRow(
            experiment_id=experiment.id,
            owner_id=experiment.owner_id,
            arm=arm,
            name=experiment.name,
            created_at=experiment.created_at,
            setting=described.setting,
            **parts,
        )
        session.add(row)
    row.seeds = len(values)
    session.flush()
    session.execute(delete(ResultMean).where(ResultMean.row_id == row.id))
    for metric in sorted({name for metrics in values.values() for name in metrics}):
        summary = summarize(metrics.get(metric) for metrics in values.values())
        if summary is not None:
            session.add(ResultMean(row_id=row.id, metric=metric, **summary))


def _part_id(session: Session, name: str, fields: Mapping[str, Any]) -> int:
    """The id of a part, which is inserted with its fields if it is new."""
    key = digest([name, fields])

    def add_fields(part: SpecPart) -> None:
        for path, value in indexed_fields(name, dict(fields)).items():
            session.add(
                SpecText(part_id=part.id, path=path, value=value[:LONGEST_TEXT])
                if isinstance(value, str)
                else SpecNumber(part_id=part.id, path=path, value=value)
            )

    part = _get_or_insert(
        session, select(SpecPart).where(SpecPart.digest == key), SpecPart(digest=key), add_fields
    )
    return part.id


def _rank(session: Session, experiment: Experiment, arm: str, described: Arm, values: Values) -> None:
    """Replace the numbers of an arm on the leaderboard."""
    setting = _setting(session, experiment, described)
    session.execute(
        delete(LeaderboardValue).where(
            LeaderboardValue.setting_id == setting.id,
            LeaderboardValue.experiment_id == experiment.id,
            LeaderboardValue.arm == arm,
        )
    )
    for seed in _newest_seeds(session, setting, experiment.id, values):
        metrics = values[seed]
        session.merge(
            LeaderboardValue(
                setting_id=setting.id,
                seed=seed,
                experiment_id=experiment.id,
                arm=arm,
                clean_accuracy=metrics.get("clean_accuracy"),
                attack_success_rate=metrics.get("attack_success_rate"),
                defense_effectiveness=metrics.get(EFFECTIVENESS),
            )
        )
    session.flush()
    _update_seeds(session, setting)


def _newest_seeds(
    session: Session, setting: LeaderboardSetting, experiment_id: str, seeds: Collection[int]
) -> list[int]:
    """The seeds for which no newer experiment has numbers; experiment ids sort by age."""
    query = select(LeaderboardValue.seed, LeaderboardValue.experiment_id).where(
        LeaderboardValue.setting_id == setting.id, LeaderboardValue.seed.in_(seeds)
    )
    newest = dict(session.execute(query).all())
    return [seed for seed in seeds if newest.get(seed, "") <= experiment_id]


def _setting(session: Session, experiment: Experiment, described: Arm) -> LeaderboardSetting:
    attack = described.parts["attack"] if described.defense != CLEAN else {"name": "none"}
    return _get_or_insert(
        session,
        select(LeaderboardSetting).where(
            LeaderboardSetting.owner_id == experiment.owner_id,
            LeaderboardSetting.setting == described.setting,
        ),
        LeaderboardSetting(
            owner_id=experiment.owner_id,
            setting=described.setting,
            dataset=dataset_label(described.parts["dataset"]),
            model=label_of(described.parts["model"]),
            attack=attack["name"],
            defense=described.defense,
            poisoning_rate=attack.get("poisoning_rate"),
            seeds=0,
        ),
    )


def _update_seeds(session: Session, setting: LeaderboardSetting) -> None:
    setting.seeds = session.scalar(select(func.count()).where(LeaderboardValue.setting_id == setting.id)) or 0
    session.flush()


def _get_or_insert(
    session: Session,
    query: Select[Inserted],
    new: Inserted,
    complete: Callable[[Inserted], None] = lambda _new: None,
) -> Inserted:
    """The row that ``query`` selects, or else ``new``, inserted and then completed by ``complete``."""
    row = session.scalars(query).one_or_none()
    if row is not None:
        return row
    try:
        with session.begin_nested():
            session.add(new)
            session.flush()
            complete(new)
            return new
    except IntegrityError:  # another worker inserted it at the same time
        return session.scalars(query).one()
