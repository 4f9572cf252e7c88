"""Exceptions that the client raises.

BdlabError
├── ApiError              the service answered with an error
│   └── NotFoundError     ... with 404
├── UnreachableError      the service does not answer
├── WaitTimeoutError      the wait timed out
├── DamagedDownloadError  a downloaded file does not match its digest
├── UnsuitableFileError   the artifact has the wrong file type
└── MissingPackageError   an optional package is not installed
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2


class BdlabError(Exception):
    """Base class of all errors below."""


class ApiError(BdlabError):
    """The service answered with an error, described by a problem document (RFC 9457).

    ``errors`` lists the invalid fields of a rejected body, each with ``field``, ``value`` and what is allowed.
    """

    def __init__(self, status: int, title: str, detail: str, errors: list[dict[str, Any]]) -> None:
        super().__init__(status, title, detail, errors)
        self.status, self.title, self.detail, self.errors = status, title, detail, errors

    def __str__(self) -> str:
        text = self.detail or self.title
        fields = "; ".join(_describe_field(error) for error in self.errors)
        return " ".join(f"{text}: {fields}".split()) if fields else " ".join(text.split())


class NotFoundError(ApiError):
    """The resource does not exist (404)."""


class UnreachableError(BdlabError):
    """The service does not answer, or the connection failed and could not be restored."""


class WaitTimeoutError(BdlabError):
    """`wait` timed out. The experiment or check continues on the service."""


class DamagedDownloadError(BdlabError):
    """The SHA-256 digest of a downloaded file differs from the one that the service announced."""


class UnsuitableFileError(BdlabError, ValueError):
    """The artifact has the wrong file type."""


class MissingPackageError(BdlabError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def error_from(response: "httpx2.Response") -> ApiError:
    """The exception for a response with status 400 or above, whether or not its body is a problem document."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    error_class = NotFoundError if response.status_code == 404 else ApiError
    return error_class(
        response.status_code,
        str(problem.get("title") or f"HTTP {response.status_code}"),
        str(problem.get("detail") or ""),
        [error for error in problem.get("errors") or [] if isinstance(error, dict)],
    )


def _describe_field(error: dict[str, Any]) -> str:
    message = error.get("message") or error.get("allowed") or "not allowed"
    value = f" = {error['value']!r}" if error.get("value") is not None else ""
    return f"{error.get('field') or 'body'}{value}: {message}"
