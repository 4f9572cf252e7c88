"""The `bdlab` command as a user meets it: real processes, real exit codes, the live service."""

import contextlib
import functools
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.results.numbers.interpretation import findings
from bdlab.commands import experiments
from bdlab.commands.tables import percent
from tests.app.sending import sent_dataset
from tests.conftest import BDLAB, Stack
from tests.processes import alive, command_line, descendants
from tests.quick import QUICK

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NOWHERE = "http://127.0.0.1:9"


def bdlab(*words: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BDLAB, *words],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def fails(code: int, *words: str, stdin: str = "", **environment: str) -> str:
    """Standard error of a command that must end with ``code`` and say why in one line."""
    done = bdlab(*words, stdin=stdin, **environment)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("bdlab: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def run(stack: Stack) -> Run:
    def run_(*words: str, stdin: str = "", code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = bdlab(*words, stdin=stdin, BDLAB_URL=stack.url)
        assert done.returncode == code, done
        return done

    return run_


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    assert "cannot be read" in fails(2, "submit", str(tmp_path / "none.json"))
    assert "does not contain a JSON object" in fails(2, "submit", str(tmp_path / "list.json"))
    assert "not valid JSON" in fails(2, "submit", str(tmp_path / "broken.json"))
    assert "not valid JSON" in fails(2, "submit", "-", stdin="[" * 100_000)
    assert "--index" in fails(2, "predict", "7")
    assert "nope" in fails(2, "nope")
    assert "--port" in fails(2, "up", "--port", "many")
    assert "BDLAB_MAX_ATTEMPTS" in fails(2, "migrate", BDLAB_MAX_ATTEMPTS="0")


def test_no_service_is_exit_code_3(tmp_path: Path) -> None:
    assert NOWHERE in fails(3, "list", "--url", NOWHERE)
    assert "no service" in fails(3, "list", BDLAB_URL="nonsense")
    (tmp_path / "address").write_text("http://127.0.0.1:10\n")
    assert "http://127.0.0.1:10" in fails(3, "list", BDLAB_HOME=str(tmp_path))
    assert "database" in fails(3, "migrate", BDLAB_DATABASE_URL="postgresql+psycopg://x@127.0.0.1:9/x")


def test_help_and_version_need_nothing() -> None:
    assert "submit" in bdlab().stdout
    assert json.loads(bdlab("version", "--json").stdout)["version"] in bdlab("version").stdout


def test_submit_watch_and_everything_after(run: Run, tmp_path: Path) -> None:
    watched = run("submit", "-", "--watch", stdin=json.dumps(QUICK))
    id, _, table = watched.stdout.partition("\n")
    assert "undefended" in table
    assert "abl" in table
    assert "succeeded" in watched.stderr
    csv = run("results", id, "--csv").stdout.splitlines()
    assert csv[0].startswith("experiment_id,arm,seed,")
    assert len(csv) == 5
    assert json.loads(run("results", id, "--json").stdout)["experiment_id"] == id
    assert id in [e["id"] for e in json.loads(run("list", "--tag", "study:quick", "--json").stdout)]
    row = next(line for line in run("list", "--status", "succeeded").stdout.splitlines() if id in line)
    assert all(text in row for text in ("digits", "small_cnn", "badnets", "abl"))
    predicted = run("predict", id, "--index", "3", "--triggered", "--picture", str(tmp_path / "seen.png"))
    assert "undefended" in predicted.stdout
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert "badnets" in run("catalog").stdout
    assert len(run("logs", id, "--tail", "3").stdout.splitlines()) == 3
    names = [a["name"] for a in json.loads(run("artifacts", "list", id, "--json").stdout)]
    got = run("artifacts", "get", id, "*.png", "--out", str(tmp_path / "out")).stdout.split()
    assert {os.path.relpath(path, tmp_path / "out") for path in got} == {
        n for n in names if n.endswith(".png")
    }
    assert run("artifacts", "get", id, "none*", code=4).stderr.count("\n") == 1
    assert "undefended" in run("watch", id).stdout  # it has ended, so this tells it all at once
    *events, experiment = map(json.loads, run("watch", id, "--json").stdout.splitlines())
    assert experiment["id"] == id
    assert events[-1]["data"]["status"] == experiment["status"] == "succeeded"
    assert {event["type"] for event in events} >= {"state", "progress", "result"}


def test_a_canceled_experiment_is_exit_code_1(run: Run) -> None:
    long = {**QUICK, "training": {"epochs": 1000}, "seeds": [98]}
    id = run("submit", "-", stdin=json.dumps(long)).stdout.strip()
    assert id in run("cancel", id).stdout
    assert "canceled" in run("watch", id, code=1).stderr
    assert json.loads(run("retry", id, "--json").stdout)["status"] == "queued"
    run("cancel", id)


def test_what_the_service_refuses_is_one_line(run: Run) -> None:
    refused = run("submit", "-", stdin='{"attack": {"name": "sig", "target_class": 12}}', code=2)
    assert "attack.target_class" in refused.stderr
    assert "12" in refused.stderr
    assert refused.stderr.count("\n") == 1
    unknown = run("results", "01900000-0000-7000-8000-000000000000", code=4)
    assert unknown.stderr.count("\n") == 1


def test_data_commands_work_on_the_data_folder(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    labels = np.array([0, 0, 1, 1])
    np.savez(tmp_path / "toy.npz", x_train=images, y_train=labels, x_test=images[1:3], y_test=labels[1:3])
    home = {"BDLAB_DATA_DIR": str(tmp_path / "data")}
    done = bdlab("data", "import", str(tmp_path / "toy.npz"), "--json", **home)
    assert json.loads(done.stdout)["dataset"] == {"name": "imported", "key": "toy"}, done
    assert "toy: 4 training and 2 test images" in bdlab("data", "list", **home).stdout
    assert "no such file" in fails(2, "data", "import", str(tmp_path / "none.npz"), **home)
    assert "--name" in fails(2, "data", "import", "x.npz", "--name", "x", "--as", "cifar10", **home)


def test_percent_shows_the_interval_if_there_is_one() -> None:
    assert percent({"mean": 0.9724, "low": None, "high": None, "n": 1}) == "97.2 %"
    assert percent({"mean": 0.5, "low": 0.49, "high": 0.51, "n": 3}) == "50.0 ± 1.0 %"
    assert percent(None) == "-"


@pytest.mark.parametrize(
    ("left", "words"), [(0.01, "ABL removes the backdoor"), (0.9, "ABL does not remove the backdoor")]
)
def test_the_demo_says_what_the_numbers_say(left: float, words: str) -> None:
    def arm(name: str, accuracy: float, success: float) -> dict[str, object]:
        means = {"clean_accuracy": accuracy, "attack_success_rate": success, "seconds": 10.0}
        return {"arm": name, "seeds": [], "aggregate": {k: {"mean": v, "n": 1} for k, v in means.items()}}

    arms = [arm("undefended", 0.97, 0.99), arm("abl", 0.95, left)]
    spec = {"attack": {"name": "badnets", "target_class": 0}, "defenses": [{"name": "abl"}]}
    said = " ".join(finding.text for finding in findings(arms, spec))
    assert "The attack (badnets) works" in said
    assert "99.0 %" in said
    assert words in said
    assert "-2.0 points" in said


@pytest.mark.parametrize("detects", [True, False])
def test_a_prediction_prints_the_verdict_of_input_detections(
    detects: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = {"suspicion": -0.05, "threshold": -0.25, "flagged": True} if detects else None
    arm = {"arm": "strip_inputs", "class_name": "0", "probabilities": [0.9, 0.1], "detection": verdict}

    class Answering:
        def predict(self, *_: object, **__: object) -> dict[str, object]:
            return {"image": {}, "arms": [arm]}

    monkeypatch.setattr(experiments, "connect", lambda _: contextlib.nullcontext(Answering()))
    experiments.predict("id", index=0)
    said = capsys.readouterr().out
    assert "90.0 %" in said
    assert ("input detection" in said) == detects
    assert ("flagged (-0.05" in said) == detects


def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    environment = {**os.environ, "BDLAB_HOME": str(tmp_path), "BDLAB_BROKER_URL": "redis://nowhere:1"}
    # Where tests run in the background, Ctrl-C is ignored and children inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        [BDLAB, "demo"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,  # noqa: PLW1509  # it takes no lock
    ) as demo:
        assert demo.stderr
        assert "Submitted digits-badnets-abl.json to http://127.0.0.1:" in demo.stderr.readline()
        assert "stop it first" in fails(2, "demo", BDLAB_HOME=str(tmp_path))
        children = descendants(demo.pid)
        assert len(children) > 4
        demo.send_signal(signal.SIGINT)
        demo.stderr.read()
        assert demo.wait(60) == 130
    assert not [command_line(pid) for pid in children if alive(pid)]
    assert not (tmp_path / "demo" / "home" / "address").exists()


def test_names_are_only_text_on_the_terminal(run: Run, stack: Stack) -> None:
    name = "a\x1b]0;title\x07\n[red]b[/red]\u202e"
    spec = {**QUICK, "name": name, "tags": {"study": "escape"}, "training": {"epochs": 500}}
    stack.post(f"/v1/experiments/{stack.submit(spec)}:cancel")
    dataset_id = sent_dataset(stack.client, name=name)
    listed, fields = run("list", "--tag", "study:escape").stdout, run("datasets", "show", dataset_id).stdout
    refused = fails(2, "list", "--tag", name, BDLAB_URL=stack.url)
    stack.client.delete(f"/v1/datasets/{dataset_id}")
    for text in (listed, fields, refused):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"a\x1b]0;title\x07" in text
        assert "[red]b[/red]" in text
