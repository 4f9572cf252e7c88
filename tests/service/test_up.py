"""When `bdlab up` refuses to start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.operations import child_process
from app.operations.child_process import Child
from tests.conftest import BDLAB, Stack
from tests.processes import wait_for


def test_a_second_service_on_the_same_folder_is_refused_with_one_line(stack: Stack) -> None:
    second = subprocess.run(
        [BDLAB, "up", "--port", "0"],
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert len(second.stderr.strip().splitlines()) == 1
    assert str(stack.home) in second.stderr
    assert stack.client.get("/readyz").status_code == 200


def test_a_service_without_keys_cannot_listen_to_other_machines(stack: Stack) -> None:
    public = subprocess.run(
        [BDLAB, "up", "--host", "0.0.0.0"],
        env=stack.environment | {"BDLAB_HOME": str(stack.home / "other")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert public.returncode == 1
    assert "there is no API key; create one with `bdlab keys create`" in public.stderr
    assert not (stack.home / "other" / "logs").exists()


def test_nobody_else_can_read_the_files_of_a_service(stack: Stack) -> None:
    stack.submit({"training": {"epochs": 1}, "model": {"name": "small_cnn", "width": 4}})
    stack.eventually(lambda: list((stack.home / "objects").rglob("*")), 60, "no object was written")
    # Data folders may be shared by services, so their files are left as they are; this one is under the folder.
    paths = [stack.home, *(p for p in stack.home.rglob("*") if stack.home / "data" not in p.parents)]
    modes = {str(path): path.lstat().st_mode & 0o077 for path in paths if path.exists()}
    assert len(modes) > 15
    assert {path: oct(mode) for path, mode in modes.items() if mode} == {}


def test_the_log_of_a_process_has_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "MAX_LOG_BYTES", 20_000)
    log, old, go_on = tmp_path / "api.log", tmp_path / "api.log.1", tmp_path / "go on"
    script = (
        "import pathlib, sys, time\n"
        "print('x' * 30_000, flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "print('the next line', flush=True)\n"
        "time.sleep(60)"
    )
    child = Child("api", [sys.executable, "-c", script, str(go_on)], log, dict(os.environ))
    child.start()
    try:
        wait_for(lambda: log.stat().st_size > 30_000, "the first line")
        child.look_after(print)
        assert (log.stat().st_size, old.stat().st_size) == (0, 30_001)
        child.look_after(print)
        assert old.exists()
        go_on.touch()
        wait_for(lambda: log.read_text() == "the next line\n", "the line after it, and no hole before it")
    finally:
        child.reap()
