"""Packages that only some methods need."""

from importlib import import_module
from typing import Any

from bdlab.errors import MissingPackageError


def optional_import(module: str, requirement: str) -> Any:
    """Import a module, or raise MissingPackageError with the pip ``requirement`` that provides it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = error.name or module
        raise MissingPackageError(f'{name} is not installed; run `pip install "{requirement}"`') from error
