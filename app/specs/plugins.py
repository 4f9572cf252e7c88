"""Plug-ins: attacks, defenses and architectures in the ``*.py`` files of the folder that BDLAB_PLUGINS_DIR names.

A plug-in defines a spec class. Its class method ``implementation``, which only workers call, returns the code that
needs torch. Plug-ins are loaded when the experiment language is imported, so that its unions, and with them the
catalog, the OpenAPI page and every check, include them. They run with the rights of the service.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args

from app.specs.base import Spec, member_names

VARIABLE = "BDLAB_PLUGINS_DIR"
PACKAGE = "bdlab_plugins"
SpecT = TypeVar("SpecT", bound=Spec)


class PluginError(SystemExit):
    """A plug-in cannot be loaded.

    Ends the process with one line on standard error, since no process can run without a plug-in that it was configured
    to load.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"{VARIABLE}: {message}")


def with_plugins(union: Any, base: type[SpecT]) -> Any:
    """``union`` extended with every subclass of ``base`` that a plug-in defines. Raises PluginError."""
    names = member_names(union)
    plugins: list[Any] = []
    for cls in _load_plugins():
        if issubclass(cls, base):
            _check(cls, base, names)
            names.add(cls.model_fields["name"].default)
            plugins.append(cls)
    return reduce(or_, plugins, union)


def _check(cls: type[Spec], base: type[Spec], names: set[str]) -> None:
    where = f"{sys.modules[cls.__module__].__file__}: class {cls.__name__}"
    name = cls.model_fields.get("name")
    if name is None or get_args(name.annotation) != (name.default,):
        raise PluginError(f'{where} needs a field `name: Literal["..."] = "..."`')
    if name.default in names:
        raise PluginError(f"{where}: the name {name.default!r} is already used")
    if not cls.__doc__ or cls.__doc__ == base.__doc__:
        raise PluginError(f"{where} needs a docstring: the catalog shows it")
    if "implementation" not in vars(cls):
        raise PluginError(f"{where} needs a classmethod `implementation`")
    for field, info in cls.model_fields.items():
        if field != "name" and not info.description:
            raise PluginError(f"{where}: the field {field!r} needs a description: the catalog shows it")


@cache
def _load_plugins() -> tuple[type[Spec], ...]:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return ()
    if not Path(folder).is_dir():
        raise PluginError(f"{folder!r} is not a folder")
    return tuple(cls for path in sorted(Path(folder).glob("*.py")) for cls in _load(path))


def _load(path: Path) -> Iterator[type[Spec]]:
    """The spec classes that a file defines, with the digest of the file as their ``code``."""
    # Run exactly the text that is digested; an import could run a cached compilation of other text.
    name, text = f"{PACKAGE}.{path.stem}", path.read_bytes()
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # annotations are resolved in it
    try:
        exec(compile(text, path, "exec"), vars(module))
    except Exception as error:
        raise PluginError(f"{path}: {type(error).__name__}: {error}") from error
    digest = hashlib.sha256(text).hexdigest()
    for cls in vars(module).values():
        defined_here = isinstance(cls, type) and issubclass(cls, Spec) and cls.__module__ == name
        if defined_here and not cls.__name__.startswith("_"):
            cls.code = digest
            yield cls
