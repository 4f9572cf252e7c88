"""What one piece of work is known by: the ids that every log line, span and message about it carries.

They lie in a context variable: a request binds its own, a worker those of the experiment that it runs. What is bound
when an experiment is submitted is kept with it, so that the worker can bind it again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

Ids = Mapping[str, str | int]
_bound: ContextVar[Ids] = ContextVar("ids", default=MappingProxyType({}))


def bound() -> Ids:
    """What is bound here. Threads start with nothing, unless they run in a copy of the context."""
    return _bound.get()


def bind(**more: str | int | None) -> None:
    """Bind ids for the rest of this context; None removes one."""
    _bound.set({name: value for name, value in {**bound(), **more}.items() if value is not None})


@contextmanager
def binding(**more: str | int | None) -> Iterator[None]:
    """Bind ids for a block, and whatever is bound within it."""
    token = _bound.set(bound())
    try:
        bind(**more)
        yield
    finally:
        _bound.reset(token)


def request_id() -> str | None:
    """The request that this work is done for, if any."""
    found = bound().get("request_id")
    return str(found) if found is not None else None
