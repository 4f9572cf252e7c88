"""Sweeps and studies with real workers: reuse of stages, the commands, the documented examples."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bdlab.cli import main
from tests.conftest import BDLAB, Stack

ROOT = Path(__file__).parents[2]
TINY = {
    "dataset": {"name": "digits", "train_size": 200, "test_size": 60},
    "model": {"name": "small_cnn", "width": 4},
    "training": {"epochs": 2, "batch_size": 50},
}
TUNE = {"name": "fine_tuning", "steps": 4, "clean_ratio": 0.2}
NAD = {"name": "nad", "teacher_steps": 4, "steps": 4, "clean_ratio": 0.2}
STUDY: dict[str, Any] = {
    **TINY,
    "name": "tiny",
    "attacks": [{"attack": {"name": "badnets", "size": 2}}],
    "defenses": [TUNE],
    "seeds": [41],
}
SWEEP: dict[str, Any] = {
    "name": "tiny",
    "base": {**TINY, "attack": {"name": "badnets", "size": 2}, "seeds": [41]},
    "grid": {"attack.poisoning_rate": [0.1, 0.2]},
}


def ended(stack: Stack, made: dict[str, Any]) -> dict[str, Any]:
    """Wait until the sweep or study has succeeded, and return it."""
    link = made["links"]["self"]
    stack.eventually(lambda: stack.get(link)["status"] not in ("queued", "running"), 90, "it did not end")
    batch = stack.get(link)
    assert batch["status"] == "succeeded", batch
    return batch


def cells(stack: Stack, made: dict[str, Any]) -> dict[tuple[str, str], Any]:
    rows = stack.get(made["links"]["table"])["rows"]
    return {(row["attack"], cell["arm"]): cell for row in rows for cell in row["cells"]}


@pytest.fixture(scope="module")
def study(stack: Stack) -> dict[str, Any]:
    """A finished study of one attack and one defense."""
    return ended(stack, stack.post("/v1/studies", STUDY))


def test_a_study_gives_a_complete_table(stack: Stack, study: dict[str, Any]) -> None:
    assert study["states"]["succeeded"] == study["cells"] == 3
    found = cells(stack, study)
    assert {arm for _, arm in found} == {"clean", "undefended", "fine_tuning"}
    before, after = found["badnets", "undefended"], found["badnets", "fine_tuning"]
    drops = [
        max(0.0, before[name]["mean"] - after[name]["mean"])
        for name in ("attack_success_rate", "clean_accuracy")
    ]
    assert after["defense_effectiveness"]["mean"] == pytest.approx((drops[0] - drops[1] + 1) / 2)


def test_extending_a_study_computes_only_what_is_added(stack: Stack, study: dict[str, Any]) -> None:
    before = cells(stack, study)
    (first,) = {e for cell in before.values() for e in cell["experiments"]}
    larger = stack.post(
        study["links"]["extend"], {"defenses": [NAD], "attacks": [{"attack": {"name": "blend"}}]}
    )
    assert larger["experiments"] == {"queued": 2, "running": 0, "succeeded": 1, "failed": 0, "canceled": 0}
    assert ended(stack, study)["states"]["succeeded"] == 8
    after = cells(stack, study)
    assert {place: after[place] for place in before} == before
    (added,) = after["badnets", "nad"]["experiments"]
    assert added != first
    # Its victim is the stage of the first experiment: the same numbers in no time.
    results = stack.results(added)["arms"]
    victim = next(arm for arm in results if arm["arm"] == "undefended")["seeds"][0]
    original = next(arm for arm in stack.results(first)["arms"] if arm["arm"] == "undefended")["seeds"][0]
    assert {k: v for k, v in victim.items() if k != "seconds"} == {
        k: v for k, v in original.items() if k != "seconds"
    }
    log = stack.client.get(f"/v1/experiments/{added}/logs").text
    assert "undefended, victim: taken from the cache" in log
    assert "nad, repair: done in" in log

    whole = {
        **STUDY,
        "name": "whole",
        "defenses": [TUNE, {**NAD, "arm": "distilled"}],
        "attacks": [*STUDY["attacks"], {"attack": {"name": "blend"}}],
    }
    again = stack.post("/v1/studies", whole)
    assert (again["status"], again["reused"], again["states"]["succeeded"]) == ("succeeded", 8, 8)
    numbers = cells(stack, again)["badnets", "distilled"]
    assert {**numbers, "arm": "nad"} == after["badnets", "nad"]


def write_small_examples(tmp_path: Path) -> None:
    """Write the examples to a folder, reduced to specs that take seconds."""
    for kind, fields in (("sweeps", SWEEP), ("studies", STUDY)):
        (tmp_path / "examples" / kind).mkdir(parents=True)
        for example in (ROOT / "examples" / kind).glob("*.json"):
            (tmp_path / "examples" / kind / example.name).write_text(json.dumps(fields))


def test_the_documented_curl_examples_work(stack: Stack, study: dict[str, Any], tmp_path: Path) -> None:
    write_small_examples(tmp_path)
    script = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)[:2])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    assert '"coordinates":{"attack.poisoning_rate":0.2}' in done.stdout
    assert "| attack | clean | undefended | fine_tuning |" in done.stdout
    assert "'queued': 1" in done.stdout
    assert "'canceled': 1" in done.stdout or "'running': 1" in done.stdout


@pytest.fixture
def bdlab(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command in this process, which is faster; returns what it printed."""
    monkeypatch.setenv("BDLAB_URL", stack.url)

    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["bdlab", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed
        return printed.out or printed.err

    return run


def test_the_command_for_studies(
    stack: Stack, study: dict[str, Any], tmp_path: Path, bdlab: Callable[..., str]
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    (tmp_path / "more.json").write_text("{}")
    (tmp_path / "bad.json").write_text('{"attacks": [{"attack": {}}]}')
    words = [BDLAB, "study", str(tmp_path / "study.json"), "--watch", "--url", stack.url]
    watched = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    id, _, page = watched.stdout.partition("\n")  # all of it was computed before
    assert watched.stderr == "succeeded, 100 %: 1 succeeded\n"
    assert page.splitlines()[2] == "| attack | clean | undefended | fine_tuning |"
    assert bdlab("study", "table", id) == page
    assert bdlab("study", "table", id, "--format", "latex").startswith("% tiny: clean accuracy")
    assert json.loads(bdlab("study", "table", id, "--format", "json"))["study_id"] == id
    assert "--format" in bdlab("study", "table", id, "--format", "xls", code=2)
    status_line = f"{id} succeeded, 100 %: 1 succeeded; cells: 3 succeeded\n"
    for command in ("show", "retry", "cancel"):
        assert bdlab("study", command, id) == status_line
    assert bdlab("study", "extend", id, str(tmp_path / "more.json")) == status_line
    assert "attacks[0].attack.name" in bdlab("study", str(tmp_path / "bad.json"), code=2)


def test_the_command_for_sweeps(stack: Stack, tmp_path: Path, bdlab: Callable[..., str]) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    id, _, cells = bdlab("sweep", str(tmp_path / "sweep.json"), "--watch").partition("\n")
    assert "attack.poisoning_rate=0.2" in cells
    assert "undefended" in cells
    assert json.loads(bdlab("sweep", "show", id, "--json"))["cells"][1]["status"] == "succeeded"
    assert cells in bdlab("sweep", "show", id)
    for command in ("retry", "cancel"):
        assert bdlab("sweep", command, id) == f"{id} succeeded, 100 %: 2 succeeded\n"
