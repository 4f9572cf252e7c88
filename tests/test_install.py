"""A client-only installation: what it imports, how large it is, and what its server commands say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bdlab.cli import main
from bdlab.commands.server import extras

ROOT = Path(__file__).parent.parent
SOURCES = ("app", "bdlab", "worker", "migrations", "requirements", "pyproject.toml", "README.md", "LICENSE")
SERVER = {
    "sqlalchemy",
    "fastapi",
    "celery",
    "torch",
    "numpy",
    "PIL",
    "pandas",
    "pydantic_settings",
    "structlog",
}
IMPORT_SECONDS = 0.3
INSTALLED_BYTES = 40_000_000


@pytest.mark.parametrize(
    ("module", "forbidden"), [("bdlab", SERVER | {"pydantic", "rich"}), ("bdlab.cli", SERVER | {"pydantic"})]
)
def test_importing_the_client_loads_nothing_of_the_server(module: str, forbidden: set[str]) -> None:
    code = f"import {module}, json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & forbidden
    ours = {name for name in loaded if name.startswith(("app.", "worker."))}
    assert ours <= {"app.specs", "app.specs.status", "app.specs.printable"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["up"], '"bdlab up" needs the server and the worker: pip install "backdoor-lab[server,worker]"'),
        (["keys", "list"], '"bdlab keys list" needs the server: pip install "backdoor-lab[server]"'),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [f'not-a-package[fast]>=1; extra == "{extra}"' for extra in ("server", "worker")]
    monkeypatch.setattr(extras, "requires", lambda _: ["typer", *missing])
    monkeypatch.setattr(sys, "argv", ["bdlab", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (2, f"bdlab: {line}\n")


@pytest.mark.long  # pip builds a wheel and downloads packages
def test_a_client_alone_is_small_and_starts_quickly(tmp_path: Path) -> None:
    # From a copy: setuptools writes build folders beside the sources.
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done
        return done.stdout or done.stderr

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, bdlab = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "bdlab"
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    [wheel] = tmp_path.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", wheel)

    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    installer = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    files = [file for file in packages.rglob("*") if file.is_file()]
    ours = [file for file in files if not file.relative_to(packages).parts[0].startswith(installer)]
    assert sum(file.stat().st_size for file in ours) < INSTALLED_BYTES

    # CPU time of the import alone: other processes share the cores.
    timed = "import time; start = time.process_time(); import bdlab; print(time.process_time() - start)"
    assert min(float(run(python, "-c", timed)) for _ in range(5)) < IMPORT_SECONDS
    assert "submit" in run(bdlab, "--help")
    assert run(bdlab, "version").strip() in wheel.name
    assert "no service at" in run(bdlab, "list", code=3)
    for command in ("up", "worker", "demo", "doctor", "gc", "migrate"):
        line = run(bdlab, command, code=2)
        assert line.startswith(f'bdlab: "bdlab {command}" needs the ')
        assert 'pip install "backdoor-lab[' in line
        assert line.count("\n") == 1
