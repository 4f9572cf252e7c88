"""The result of a check."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from app.core.database import Database, utcnow
from app.settings import Settings

State = Literal["ok", "warning", "error"]
MAX_CHARACTERS = 300


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mend`` says how to fix the problem; empty if there is none."""

    check: str
    state: State
    detail: str
    mend: str = ""


@dataclass
class Installation:
    """What is checked. A check leaves here what later ones need."""

    settings: Settings
    database: Database | None = None
    """Open if it has the current schema."""
    is_up: bool = False
    """Whether `bdlab up` runs on this home."""


Check = Callable[[Installation], Iterator[Finding]]


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, "warning", detail[:MAX_CHARACTERS], mend)


def error(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, "error", detail[:MAX_CHARACTERS], mend)


def compare_clock(check: str, time: datetime) -> Finding:
    """A finding on another machine's time, which should agree with this one's, so that the times of events do."""
    ahead = (time.astimezone(UTC) - utcnow()).total_seconds()
    detail = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) < 2:
        return ok(check, detail)
    return Finding(check, "warning" if abs(ahead) < 10 else "error", detail, "synchronize both clocks (NTP)")


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message."""
    return " ".join((str(problem).strip() or type(problem).__name__).partition("\n")[0].split())
