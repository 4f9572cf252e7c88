"""What a check finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from app.core.database import Database
from app.core.objects import Objects
from app.settings import Settings

State = Literal["ok", "warning", "error"]
LONGEST = 300


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mend`` says what to do about it; empty where all is well."""

    check: str
    state: State
    detail: str
    mend: str = ""


@dataclass
class Patient:
    """What is examined. A check that could open a part leaves it here for those that come after it."""

    settings: Settings
    database: Database | None = None
    objects: Objects | None = None
    up: bool = False
    """Whether `bdlab up` runs on this folder."""


Check = Callable[[Patient], Iterator[Finding]]


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, "warning", detail, mend)


def error(check: str, detail: str, mend: str) -> Finding:
    return Finding(check, "error", detail, mend)


def reason(fault: BaseException, *urls: str) -> str:
    """The first line of what went wrong, without the passwords of ``urls``."""
    text = " ".join((str(fault).strip() or type(fault).__name__).partition("\n")[0].split())
    for url in urls:
        if password := _password(url):
            text = text.replace(password, "***")
    return text.rstrip(".")[:LONGEST]


def shown_url(url: str) -> str:
    """``url`` without its password and options."""
    password = _password(url)
    return (url.replace(f":{password}@", ":***@", 1) if password else url).partition("?")[0]


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""
