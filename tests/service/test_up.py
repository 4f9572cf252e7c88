"""What `bdlab up` refuses."""

import subprocess

from tests.conftest import BDLAB, Stack


def test_a_second_service_on_the_same_folder_ends_with_one_line(stack: Stack) -> None:
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


def test_only_this_machine_may_reach_a_service_without_authentication(stack: Stack) -> None:
    open_to_all = subprocess.run(
        [BDLAB, "up", "--host", "0.0.0.0"],
        env=stack.environment | {"BDLAB_HOME": str(stack.home / "other")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert open_to_all.returncode == 1
    assert "there is no API key; create one with `bdlab keys create`" in open_to_all.stderr
    assert not (stack.home / "other" / "logs").exists()
