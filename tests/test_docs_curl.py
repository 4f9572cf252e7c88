"""The curl examples of the guides run against the live service."""

import json
import subprocess
from pathlib import Path

from tests.conftest import Stack
from tests.quick import QUICK
from tests.test_docs import blocks


def run(document: str, stack: Stack, folder: Path) -> str:
    """What the shell examples of a guide print, run in their order; they must all succeed."""
    shell = [text for name, text in blocks("bash") if name == document]
    script = "\n".join(text for text in shell if "curl" in text or text.startswith("URL="))
    assert script.count("curl") > 10
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    return done.stdout


def test_finding_results(stack: Stack, tmp_path: Path) -> None:
    short = {**QUICK, "seeds": [0]}
    for spec in (short, {**short, "defenses": []}):
        stack.wait(stack.submit(spec))
    printed = run("results-query.md", stack, tmp_path)
    assert r"attack.name & defense.name" in printed
    assert "experiment_id,created_at,tag.study,attack.name,attack.target_class" in printed
    assert "difference to the first (95 % interval)" in printed
    assert '"verdict":"agrees"' in printed
    assert (tmp_path / "results.parquet").read_bytes().startswith(b"PAR1")


def test_the_api(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/digits-badnets-abl.json").write_text(json.dumps(QUICK))  # seconds, not a minute
    printed = run("api.md", stack, tmp_path)
    assert '"field": "attack.poisoning_rate", "value": 1.5, "message": "Input should be less' in printed
    # 304, unless the run made progress between the two requests; tests/app/test_experiments.py has the exact cases.
    assert "}304\n" in printed or "}200\n" in printed
    assert '"status": "succeeded"' in printed
    assert "arm,seed,clean_accuracy" in printed
    assert "x-backdoored: true" in printed.lower()
    assert (tmp_path / "part").read_bytes() == (tmp_path / "model.safetensors").read_bytes()[:100]
