"""Files of ended experiments that the policy lets go.

A file is judged by content, since equal content is stored once: it goes when every experiment that has it lets it go,
and its bytes are free then. Its row stays and tells since when and why it has no file; asking for it is a 410.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select, true, update
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.objects import content_key
from app.experiments.reproductions.repository import MANIFEST
from app.operations.housekeeping.report import Tally
from app.results.artifacts.storage import drop, weigh
from app.settings import RetentionPolicy, RetentionRule
from app.specs.status import TERMINAL
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment, Label, Stage
from app.tables.uploads import Upload

BATCH = 200
HEAVY = RetentionRule(days=1)
"""Its kinds are those that go for want of space, whatever their age."""
Case = ColumnElement[int]


class Group(NamedTuple):
    """One content: its digest, its size, which reason lets it go, and one file of an experiment that it is."""

    sha256: str
    size: int
    reason: int
    experiment_id: str
    name: str


def stored_bytes(session: Session) -> int:
    """What the rows say is stored; equal files count once."""
    files = (
        select(func.max(Artifact.size).label("size"))
        .where(Artifact.expired_at.is_(None))
        .group_by(Artifact.sha256)
    )
    total = session.scalar(select(func.sum(files.subquery().c.size))) or 0
    stages = session.scalar(select(func.sum(Stage.size)).where(Stage.ready_at.is_not(None))) or 0
    return int(total) + int(stages) + int(session.scalar(select(func.sum(Upload.size))) or 0)


def by_age(context: Context, policy: RetentionPolicy, delete: bool, tally: Tally) -> int:
    """Files that a rule lets go. Returns the bytes that are, or would be, free."""
    if not policy.rules:
        return 0
    allowed = _by_rules(policy, utcnow())
    reasons = [_reason(rule) for rule in policy.rules]
    freed, after = 0, ""
    while True:
        with context.database.whole.reading() as session:
            query = _groups(allowed).where(Artifact.sha256 > after).order_by(Artifact.sha256).limit(BATCH)
            groups = [Group(*row) for row in session.execute(query)]
        if not groups:
            return freed
        after = groups[-1].sha256
        freed += _go(context, groups, allowed, reasons, delete, tally)


def by_size(context: Context, policy: RetentionPolicy, excess: int, delete: bool, tally: Tally) -> int:
    """Of the checkpoints and data those whose experiments ended first, until so many bytes are free."""
    allowed = case((_may_go(policy, HEAVY), 0), else_=-1)
    query = _groups(allowed).order_by(func.max(Experiment.finished_at), Artifact.sha256)
    if policy.rules:  # in a dry run these are still there
        query = query.having(func.min(_by_rules(policy, utcnow())) < 0)
    reasons = [f"the store may hold {policy.max_bytes} bytes, and this was among the oldest files"]
    freed = 0
    with context.database.whole.streaming() as session:
        for rows in session.execute(query.execution_options(yield_per=BATCH)).partitions():
            chosen: list[Group] = []
            for row in rows:
                if freed + sum(group.size for group in chosen) >= excess:
                    break
                chosen.append(Group(*row))
            freed += _go(context, chosen, allowed, reasons, delete, tally)
            if freed >= excess:
                break
    return freed


def _go(
    context: Context, groups: list[Group], allowed: Case, reasons: list[str], delete: bool, tally: Tally
) -> int:
    """Let these go. Returns the bytes that are, or would be, free."""
    if delete and groups:
        gone = _expire(context, [group.sha256 for group in groups], allowed, reasons)
        groups = [group for group in groups if group.sha256 in gone]
        drop(context.database, context.objects, [content_key(group.sha256) for group in groups])
    for group in groups:
        tally.add("retention", reasons[group.reason], f"{group.experiment_id}/{group.name}", group.size)
    return sum(group.size for group in groups)


def _expire(context: Context, digests: Sequence[str], allowed: Case, reasons: list[str]) -> set[str]:
    """Mark the rows of those contents that all their experiments still let go. Returns those."""
    with context.database.whole.writing() as session:
        having = select(Artifact.experiment_id).where(
            Artifact.sha256.in_(digests), Artifact.expired_at.is_(None)
        )
        locked = select(Experiment.id).where(Experiment.id.in_(having)).order_by(Experiment.id)
        session.execute(locked.with_for_update())  # a retry waits, or has made its experiment queued
        fitting = {row[0] for row in session.execute(_groups(allowed).where(Artifact.sha256.in_(digests)))}
        rows = session.execute(
            select(Artifact.id, allowed, Artifact.experiment_id)
            .join(Experiment, Experiment.id == Artifact.experiment_id)
            .where(Artifact.sha256.in_(fitting), Artifact.expired_at.is_(None))
        ).all()
        now = utcnow()
        for number, reason in enumerate(reasons):
            ids = [row[0] for row in rows if row[1] == number]
            marked = update(Artifact).where(Artifact.id.in_(ids)).values(expired_at=now, expired_why=reason)
            if ids:
                session.execute(marked)
        weigh(session, {row[2] for row in rows})
    return fitting


def _groups(allowed: Case) -> Select[str, int, int, str, str]:
    """The contents that all their experiments let go."""
    return (
        select(
            Artifact.sha256,
            func.max(Artifact.size),
            func.max(allowed),
            func.min(Artifact.experiment_id),
            func.min(Artifact.name),
        )
        .join(Experiment, Experiment.id == Artifact.experiment_id)
        .where(Artifact.expired_at.is_(None))
        .group_by(Artifact.sha256)
        .having(func.min(allowed) >= 0)
    )


def _by_rules(policy: RetentionPolicy, now: datetime) -> Case:
    """The number of the first rule that lets a file go, or -1."""
    return case(
        *(
            (and_(_may_go(policy, rule), Experiment.finished_at < now - timedelta(days=rule.days)), number)
            for number, rule in enumerate(policy.rules)
        ),
        else_=-1,
    )


def _may_go(policy: RetentionPolicy, rule: RetentionRule) -> ColumnElement[bool]:
    return and_(
        Experiment.status.in_(TERMINAL),
        Artifact.kind.in_(rule.kinds),
        Artifact.name != MANIFEST,
        true() if rule.tag is None else _tagged([rule.tag]),
        ~_tagged(policy.keep) if policy.keep else true(),
    )


def _tagged(tags: Sequence[str]) -> ColumnElement[bool]:
    pairs = [tag.partition(":") for tag in tags]
    fits = or_(
        *(
            and_(Label.key == key, Label.value == value) if colon else Label.key == key
            for key, colon, value in pairs
        )
    )
    return exists().where(Label.experiment_id == Experiment.id, Label.kind == "tag", fits)


def _reason(rule: RetentionRule) -> str:
    which = f"experiments tagged {rule.tag}" if rule.tag else "experiments"
    return f"{' and '.join(rule.kinds)} of {which} are kept for {rule.days:g} days after their end"
