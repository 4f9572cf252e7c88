"""The Python client imports `app.specs`, so the package needs nothing but pydantic."""

import subprocess
import sys

IMPORT_ALL = """
import pkgutil, sys
before = set(sys.modules)
import app.specs
for module in pkgutil.walk_packages(app.specs.__path__, "app.specs."):
    __import__(module.name)
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - sys.stdlib_module_names))
"""
PYDANTIC = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}


def test_specs_import_nothing_but_pydantic() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    loaded = {
        name for name in done.stdout.split() if not name.startswith("_")
    }  # _sysconfigdata of this platform
    assert loaded == {"app", *PYDANTIC}
