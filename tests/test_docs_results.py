"""The curl examples about finding results run against the live service."""

import subprocess
from pathlib import Path

from tests.conftest import Stack
from tests.quick import QUICK
from tests.test_docs import blocks


def test_the_curl_examples_work_in_their_order(stack: Stack, tmp_path: Path) -> None:
    short = {**QUICK, "seeds": [0]}
    for spec in (short, {**short, "defenses": []}):
        stack.wait(stack.submit(spec))
    script = "\n".join(text for name, text in blocks("bash") if name == "results-query.md" and "curl" in text)
    assert script.count("curl") > 10
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    assert r"attack.name & defense.name" in done.stdout
    assert "experiment_id,created_at,tag.study,attack.name,attack.target_class" in done.stdout
    assert "difference to the first (95 % interval)" in done.stdout
    assert '"verdict":"agrees"' in done.stdout
    assert (tmp_path / "results.parquet").read_bytes().startswith(b"PAR1")
