"""The logs of every process: one line per event, as JSON or text, with the ids bound in `app.core.log_context`.

Code logs through the standard library, as uvicorn, Celery and SQLAlchemy do; structlog renders what arrives.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.core import log_context
from app.settings import Settings

HIDDEN = "***"
SHORTEST_SECRET = 6
AWS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SHAPES = (
    (re.compile(r"bdlab_([a-z0-9]{8})_[A-Za-z0-9_-]{43}"), rf"bdlab_\1_{HIDDEN}"),
    (re.compile(r"(://[^/\s:@\"']*):[^/\s@\"']+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic)( +)[a-z0-9._~+/=-]{8,}"), rf"\1\2{HIDDEN}"),
    (re.compile(r"(?i)(x-amz-[a-z-]*(?:signature|credential|token)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(/v1/downloads/)[A-Za-z0-9_-]+"), rf"\1{HIDDEN}"),
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), f"whsec_{HIDDEN}"),
)
"""What gives itself away as a secret: API keys, passwords in URLs, headers, signed links, secrets of webhooks."""
QUIET = {
    "celery.app.trace": logging.WARNING,  # it would print every picture that a task returns,
    "celery.worker.strategy": logging.WARNING,  # and this every one that a task is given
    "uvicorn.access": logging.WARNING,  # app.core.request_middleware tells of requests, with their ids
    "httpx": logging.WARNING,
    "urllib3": logging.WARNING,
}

Scrub = Callable[[str], str]


def configure(process: str, settings: Settings) -> None:
    """Set up the logs of this process, which is named in every line. They go to standard error."""
    import structlog  # noqa: PLC0415  # takes 0.15 s to import, which only a whole process needs to pay
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name  # noqa: PLC0415

    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())

    def name(_logger: Any, _method: str, event: Any) -> Any:
        event.pop("color_message", None)  # uvicorn's message once more, with colors
        return {"process": process, "pid": os.getpid(), **log_context.bound(), **event}

    def in_order(_logger: Any, _method: str, event: Any) -> Any:
        first = {key: event.pop(key) for key in ("timestamp", "level")}
        return {**first, "message": event.pop("event"), **event}

    shared: list[Any] = [
        ExtraAdder(),
        add_log_level,
        add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name,
    ]
    if as_json:
        last: list[Any] = [
            structlog.processors.format_exc_info,
            in_order,
            structlog.processors.JSONRenderer(),
        ]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    formatter = ProcessorFormatter(
        foreign_pre_chain=shared, processors=[ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbing(formatter, scrubber(settings)))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "multiprocessing"):
        logging.getLogger(logger).handlers = []
        logging.getLogger(logger).propagate = True
    for logger, level in QUIET.items():
        logging.getLogger(logger).setLevel(level)
    logging.captureWarnings(True)


class _Scrubbing(logging.Formatter):
    """A formatter whose lines hold no secrets."""

    def __init__(self, inner: logging.Formatter, scrub: Scrub) -> None:
        super().__init__()
        self._inner = inner
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        return self._scrub(self._inner.format(record))


def scrubber(settings: Settings) -> Scrub:
    """A function that hides in a line what looks like a secret, and every secret of the settings."""
    known = _forms(
        [
            settings.secret.get_secret_value(),
            settings.key_pepper.get_secret_value(),
            *(_password(url) for url in (settings.database_url, settings.broker_url, settings.objects_url)),
            *(os.environ.get(name, "") for name in AWS),
        ]
    )

    def scrub(line: str) -> str:
        for secret in known:
            line = line.replace(secret, HIDDEN)
        for shape, instead in SHAPES:
            line = shape.sub(instead, line)
        return line

    return scrub


def _forms(secrets: Sequence[str]) -> list[str]:
    """Each secret as it is, as JSON writes it, and as a URL does; the longest first."""
    found = {s for s in secrets if len(s) >= SHORTEST_SECRET}
    return sorted({form for s in found for form in (s, json.dumps(s)[1:-1], quote(s, safe=""))}, key=len)[
        ::-1
    ]


def _password(url: str) -> str:
    try:
        return make_url(url).password or "" if url else ""
    except ArgumentError:
        return ""
