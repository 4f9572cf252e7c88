"""The logs of every process: one line per event, as JSON or text, with the ids bound by `structlog.contextvars`.

Code logs through the standard library, as uvicorn, Celery and SQLAlchemy do; structlog renders the records.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import structlog
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from structlog.contextvars import get_contextvars
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

from app.settings import Settings

HIDDEN = "***"
MIN_SECRET_CHARACTERS = 6
AWS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
PATTERNS = (
    (re.compile(r"bdlab_([a-z0-9]{8})_[A-Za-z0-9_-]{43}"), rf"bdlab_\1_{HIDDEN}"),
    (re.compile(r"(://[^/\s:@\"']*):[^/\s@\"']+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic)( +)[a-z0-9._~+/=-]{8,}"), rf"\1\2{HIDDEN}"),
    (re.compile(r"(?i)(x-amz-[a-z-]*(?:signature|credential|token)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(/v1/downloads/)[A-Za-z0-9_-]+"), rf"\1{HIDDEN}"),
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), f"whsec_{HIDDEN}"),
)
"""Secrets that are recognized by their form: API keys, passwords in URLs, headers, signed links, webhook secrets."""
QUIET = {
    "celery.app.trace": logging.WARNING,  # would log every image that a task returns
    "celery.worker.strategy": logging.WARNING,  # would log every image that a task receives
    "uvicorn.access": logging.WARNING,  # app.core.request_middleware logs requests, with their ids
    "httpx": logging.WARNING,
    "urllib3": logging.WARNING,
}

Scrub = Callable[[str], str]


def configure(process: str, settings: Settings) -> None:
    """Set up logging to standard error. Every line names the process."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())

    def add_context(_logger: Any, _method: str, event: Any) -> Any:
        event.pop("color_message", None)  # uvicorn's message again, with colors
        bound = {key: value for key, value in get_contextvars().items() if value is not None}
        return {"process": process, "pid": os.getpid(), **bound, **event}

    def sort_keys(_logger: Any, _method: str, event: Any) -> Any:
        first = {key: event.pop(key) for key in ("timestamp", "level")}
        return {**first, "message": event.pop("event"), **event}

    shared: list[Any] = [
        ExtraAdder(),
        add_log_level,
        add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_context,
    ]
    if as_json:
        last: list[Any] = [
            structlog.processors.format_exc_info,
            sort_keys,
            structlog.processors.JSONRenderer(),
        ]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    formatter = ProcessorFormatter(
        foreign_pre_chain=shared, processors=[ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ScrubbingFormatter(formatter, scrubber(settings)))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "multiprocessing"):
        logging.getLogger(logger).handlers = []
        logging.getLogger(logger).propagate = True
    for logger, level in QUIET.items():
        logging.getLogger(logger).setLevel(level)
    logging.captureWarnings(True)


class _ScrubbingFormatter(logging.Formatter):
    """Removes secrets from the lines of another formatter."""

    def __init__(self, inner: logging.Formatter, scrub: Scrub) -> None:
        super().__init__()
        self._inner = inner
        self._scrub = scrub

    def format(self, record: logging.LogRecord) -> str:
        return self._scrub(self._inner.format(record))


def scrubber(settings: Settings) -> Scrub:
    """A function that hides the secrets of the settings, and whatever matches `PATTERNS`, in a line."""
    secrets = _written_forms(
        [
            settings.secret.get_secret_value(),
            settings.key_pepper.get_secret_value(),
            *(_password(url) for url in (settings.database_url, settings.broker_url, settings.objects_url)),
            *(os.environ.get(name, "") for name in AWS),
        ]
    )

    def scrub(line: str) -> str:
        for secret in secrets:
            line = line.replace(secret, HIDDEN)
        for pattern, replacement in PATTERNS:
            line = pattern.sub(replacement, line)
        return line

    return scrub


def _written_forms(secrets: Sequence[str]) -> list[str]:
    """Each secret as it is, as a JSON string and as in a URL; longest first."""
    long = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS}
    forms = {form for secret in long for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))}
    return sorted(forms, key=len, reverse=True)


def _password(url: str) -> str:
    try:
        return make_url(url).password or "" if url else ""
    except ArgumentError:
        return ""
