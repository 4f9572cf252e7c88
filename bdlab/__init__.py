"""The Python client: ``from bdlab import Client``.

Answers are plain dictionaries, typed for checkers in `app.client_types`. Every error on purpose is a BdlabError.
"""

from app.client_errors import (
    ApiError,
    BdlabError,
    DamagedDownloadError,
    MissingPackageError,
    NotFoundError,
    UnreachableError,
    UnsuitableFileError,
    WaitTimeoutError,
)
from bdlab.client import Client
from bdlab.files import BackdooredModelWarning

__all__ = [
    "ApiError",
    "BackdooredModelWarning",
    "BdlabError",
    "Client",
    "DamagedDownloadError",
    "MissingPackageError",
    "NotFoundError",
    "UnreachableError",
    "UnsuitableFileError",
    "WaitTimeoutError",
]
