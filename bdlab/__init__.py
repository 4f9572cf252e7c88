"""The Python client: ``from bdlab import Client``.

Responses are plain dictionaries, whose types are in `bdlab.types`. Every exception is a `BdlabError`.
"""

from bdlab.client import Client
from bdlab.errors import (
    ApiError,
    BdlabError,
    DamagedDownloadError,
    MissingPackageError,
    NotFoundError,
    UnreachableError,
    UnsuitableFileError,
    WaitTimeoutError,
)
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
