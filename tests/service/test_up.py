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
