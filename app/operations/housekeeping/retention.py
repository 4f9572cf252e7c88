"""Deletes files of ended experiments that the policy does not keep.

Equal content is stored once, so the decision is about contents: one is deleted when every experiment with it allows
that. The artifact's row stays and says when and why the file was deleted; requests for it get a 410.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select, true, update
from sqlalchemy.orm import Session

from app.core.database import utcnow
from app.core.objects import content_key
from app.experiments.reproductions.repository import MANIFEST
from app.operations.housekeeping.report import Run
from app.results.artifacts.storage import delete_unreferenced, update_stored_bytes
from app.settings import RetentionPolicy, RetentionRule
from app.specs.status import TERMINAL
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment, Label, Stage
from app.tables.uploads import Upload

BATCH = 200
LARGE_FILES = RetentionRule(days=1)
"""Its kinds are deleted to save space, whatever their age."""
RuleNumber = ColumnElement[int]
"""SQL for the number of the rule that allows a file to be deleted; negative if none does."""


class Content(NamedTuple):
    """A stored content, the number of the rule that allows deleting it, and one artifact with it."""

    sha256: str
    size: int
    rule: int
    experiment_id: str
    name: str


def stored_bytes(session: Session) -> int:
    """Bytes stored according to the database; equal files count once."""
    files = (
        select(func.max(Artifact.size).label("size"))
        .where(Artifact.expired_at.is_(None))
        .group_by(Artifact.sha256)
    )
    total = session.scalar(select(func.sum(files.subquery().c.size))) or 0
    stages = session.scalar(select(func.sum(Stage.size)).where(Stage.ready_at.is_not(None))) or 0
    return int(total) + int(stages) + int(session.scalar(select(func.sum(Upload.stored_bytes))) or 0)


def expire_by_age(run: Run) -> int:
    """Files that a rule no longer keeps. Returns the bytes freed."""
    if not run.policy.rules:
        return 0
    rule = _first_rule(run.policy, utcnow())
    reasons = [_reason(each) for each in run.policy.rules]
    freed, after = 0, ""
    while True:
        query = _deletable(rule).where(Artifact.sha256 > after).order_by(Artifact.sha256).limit(BATCH)
        with run.context.database.whole.reading() as session:
            contents = [Content(*row) for row in session.execute(query)]
        if not contents:
            return freed
        after = contents[-1].sha256
        freed += _expire(run, contents, rule, reasons)


def expire_oldest(run: Run, excess: int) -> int:
    """Checkpoints and data of the experiments that ended first, until ``excess`` bytes are freed. Returns these."""
    if excess <= 0:
        return 0
    rule = case((_may_delete(run.policy, LARGE_FILES), 0), else_=-1)
    query = _deletable(rule).order_by(func.max(Experiment.finished_at), Artifact.sha256)
    if run.policy.rules:  # in a dry run, files that a rule deletes are still there
        query = query.having(func.min(_first_rule(run.policy, utcnow())) < 0)
    reasons = [f"one of the oldest files, deleted to store at most {run.policy.max_bytes} bytes"]
    freed = 0
    with run.context.database.whole.streaming() as session:
        for rows in session.execute(query.execution_options(yield_per=BATCH)).partitions():
            contents: list[Content] = []
            for row in rows:
                if freed + sum(content.size for content in contents) >= excess:
                    break
                contents.append(Content(*row))
            freed += _expire(run, contents, rule, reasons)
            if freed >= excess:
                break
    return freed


def _expire(run: Run, contents: list[Content], rule: RuleNumber, reasons: list[str]) -> int:
    """Report the contents, and delete them if the run does. Returns the bytes freed."""
    if run.delete and contents:
        expired = _expire_rows(run, [content.sha256 for content in contents], rule, reasons)
        contents = [content for content in contents if content.sha256 in expired]
        delete_unreferenced(
            run.context.database, run.context.objects, [content_key(content.sha256) for content in contents]
        )
    for content in contents:
        name = f"{content.experiment_id}/{content.name}"
        run.report.add("retention", reasons[content.rule], name, content.size)
    return sum(content.size for content in contents)


def _expire_rows(run: Run, digests: Sequence[str], rule: RuleNumber, reasons: list[str]) -> set[str]:
    """Mark the rows of the contents that all their experiments still allow to delete. Returns their digests."""
    with run.context.database.whole.writing() as session:
        owners = select(Artifact.experiment_id).where(
            Artifact.sha256.in_(digests), Artifact.expired_at.is_(None)
        )
        locked = select(Experiment.id).where(Experiment.id.in_(owners)).order_by(Experiment.id)
        session.execute(locked.with_for_update())  # a concurrent retry waits, or has queued its experiment
        expired = {row[0] for row in session.execute(_deletable(rule).where(Artifact.sha256.in_(digests)))}
        rows = session.execute(
            select(Artifact.id, rule, Artifact.experiment_id)
            .join(Experiment, Experiment.id == Artifact.experiment_id)
            .where(Artifact.sha256.in_(expired), Artifact.expired_at.is_(None))
        ).all()
        for number, reason in enumerate(reasons):
            ids = [row[0] for row in rows if row[1] == number]
            values = {"expired_at": utcnow(), "expired_why": reason}
            if ids:
                session.execute(update(Artifact).where(Artifact.id.in_(ids)).values(values))
        update_stored_bytes(session, {row[2] for row in rows})
    return expired


def _deletable(rule: RuleNumber) -> Select[str, int, int, str, str]:
    """`Content` rows that all their experiments allow to delete."""
    return (
        select(
            Artifact.sha256,
            func.max(Artifact.size),
            func.max(rule),
            func.min(Artifact.experiment_id),
            func.min(Artifact.name),
        )
        .join(Experiment, Experiment.id == Artifact.experiment_id)
        .where(Artifact.expired_at.is_(None))
        .group_by(Artifact.sha256)
        .having(func.min(rule) >= 0)
    )


def _first_rule(policy: RetentionPolicy, now: datetime) -> RuleNumber:
    """The number of the first rule that allows deleting a file, or -1."""
    return case(
        *(
            (
                and_(_may_delete(policy, rule), Experiment.finished_at < now - timedelta(days=rule.days)),
                number,
            )
            for number, rule in enumerate(policy.rules)
        ),
        else_=-1,
    )


def _may_delete(policy: RetentionPolicy, rule: RetentionRule) -> ColumnElement[bool]:
    return and_(
        Experiment.status.in_(TERMINAL),
        Artifact.kind.in_(rule.kinds),
        Artifact.name != MANIFEST,
        true() if rule.tag is None else _has_tag([rule.tag]),
        ~_has_tag(policy.keep) if policy.keep else true(),
    )


def _has_tag(tags: Sequence[str]) -> ColumnElement[bool]:
    pairs = [tag.partition(":") for tag in tags]
    matches = or_(
        *(
            and_(Label.key == key, Label.value == value) if colon else Label.key == key
            for key, colon, value in pairs
        )
    )
    return exists().where(Label.experiment_id == Experiment.id, Label.kind == "tag", matches)


def _reason(rule: RetentionRule) -> str:
    which = f"experiments tagged {rule.tag}" if rule.tag else "experiments"
    return f"{' and '.join(rule.kinds)} of {which} are kept for {rule.days:g} days after their end"
