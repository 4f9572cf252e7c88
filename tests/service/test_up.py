"""When `bdlab up` refuses to start."""

import subprocess

from tests.conftest import BDLAB, Stack


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
