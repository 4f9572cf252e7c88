"""What the client raises: one tree, so that ``except BdlabError`` catches all of it."""

from typing import Any

import httpx2


class BdlabError(Exception):
    """Base of everything that the client raises on purpose."""


class UnreachableError(BdlabError):
    """Nothing answers at the address, or the connection broke and stayed broken."""


class DamagedDownloadError(BdlabError):
    """A downloaded file's digest is not the one that the service promised."""


class WaitTimeoutError(BdlabError):
    """The experiment did not end in time; it goes on running."""


class MissingPackageError(BdlabError, ImportError):
    """What was asked for needs a package that is not installed; the message names it."""


class UnsuitableFileError(BdlabError, ValueError):
    """An artifact is of another kind than was asked for."""


class ApiError(BdlabError):
    """The service answered with a problem (RFC 9457).

    ``errors`` holds the single faults of a refused body, each with ``field``, ``value`` and what is allowed.
    """

    def __init__(self, status: int, title: str, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(status, title, detail, errors)
        self.status, self.title, self.detail, self.errors = status, title, detail, errors

    def __str__(self) -> str:
        text = self.detail or self.title
        faults = "; ".join(_fault(error) for error in self.errors)
        return " ".join(f"{text}: {faults}".split()) if faults else " ".join(text.split())


class NotFoundError(ApiError):
    """There is no such thing (404)."""


def error_from(response: httpx2.Response) -> ApiError:
    """The exception for an answer of 400 or more, whether or not its body is a problem."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    kind = NotFoundError if response.status_code == 404 else ApiError
    return kind(
        response.status_code,
        str(problem.get("title") or f"HTTP {response.status_code}"),
        str(problem.get("detail") or ""),
        [error for error in problem.get("errors") or [] if isinstance(error, dict)],
    )


def _fault(error: dict[str, Any]) -> str:
    said = error.get("message") or error.get("allowed") or "not allowed"
    value = f" = {error['value']!r}" if error.get("value") is not None else ""
    return f"{error.get('field') or 'body'}{value}: {said}"
