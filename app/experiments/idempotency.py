"""Requests that may be sent twice: the first answer to an Idempotency-Key is stored and repeated."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.database import utcnow
from app.core.errors import InvalidError
from app.experiments import repository
from app.tables.experiments import Idempotency


class Answer(Protocol):
    """A response model with an id."""

    id: str

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
    @classmethod
    def model_validate(cls, obj: Any) -> "Answer": ...


A = TypeVar("A", bound=Answer)


def once(
    context: Context, key: str | None, body_hash: str, kind: type[A], make: Callable[[Session], A]
) -> tuple[dict[str, Any], bool]:
    """Call ``make`` in a transaction of its own, or repeat the first answer to ``key``.

    Returns the answer as JSON, and True if it is a replay. Raises InvalidError for a ``key`` that was used with
    another body.
    """
    try:
        with context.database.writing() as session:
            first = repository.first_answer(session, key) if key else None
            if first is not None:
                return _replay(first, body_hash, kind), True
            made = make(session)
            answer = made.model_dump(mode="json")
            if key:
                session.add(
                    Idempotency(
                        key=key,
                        body_hash=body_hash,
                        experiment_id=made.id,
                        response=answer,
                        created_at=utcnow(),
                    )
                )
            return answer, False
    except IntegrityError:
        # Two requests with the same key at once: the other one committed first.
        with context.database.reading() as session:
            first = repository.first_answer(session, key) if key else None
        if first is None:
            raise
        return _replay(first, body_hash, kind), True


def _replay(first: Idempotency, body_hash: str, kind: type[Answer]) -> dict[str, Any]:
    if first.body_hash != body_hash:
        raise InvalidError("Idempotency-Key: this key was used before, with another body")
    # Parsed and dumped again, because PostgreSQL does not keep the order of keys.
    return kind.model_validate(first.response).model_dump(mode="json")
