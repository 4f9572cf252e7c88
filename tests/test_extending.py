"""An attack, a defense and an architecture in one file each (examples/plugins, docs/extending.md): the front door.

The service that tests share (`stack`) is started with that folder.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.specs import attack, defense, model, plugins
from app.specs.attacks.base import PoisoningAttack
from app.specs.defenses.base import Defense
from app.specs.experiment import ExperimentSpec
from app.specs.models.base import Architecture
from app.specs.stages import plan
from tests.conftest import Stack
from tests.quick import QUICK
from tests.test_cli import bdlab
from tests.test_docs import ROOT, blocks

PLUGINS = ROOT / "examples/plugins"
SPEC: dict[str, Any] = {
    **QUICK,
    "attack": {"name": "posterize", "levels": 3},
    "defenses": [{"name": "linear_probing", "steps": 8, "clean_ratio": 0.2}],
    "seeds": [0],
    "tags": {"study": "extending"},
}
ATTACK = (PLUGINS / "posterize.py").read_text()


def test_the_guide_shows_the_files_that_are_tested() -> None:
    shown = [text for name, text in blocks("python") if name == "extending.md"]
    assert shown == [
        (PLUGINS / name).read_text() for name in ("posterize.py", "linear_probing.py", "mlp_mixer.py")
    ]


def test_the_service_takes_them_as_its_own(stack: Stack) -> None:
    catalog = stack.get("/v1/catalog")
    (found,) = [entry for entry in catalog["attacks"] if entry["name"] == "posterize"]
    assert found["defaults"]["levels"] == 8
    assert found["source"].split("; ") == [
        "Wang et al., 2022",
        "Gu et al. 2017",
        "BackdoorBench's published settings (Wu et al. 2022)",
        "Gu et al. 2017, section 4.2",
        "the authors' code",
    ]
    assert "linear_probing" in [entry["name"] for entry in catalog["defenses"]]
    assert 'value="posterize"' in stack.client.get("/new").text
    preview = {"dataset": {"name": "digits"}, "attack": {"name": "posterize", "levels": 3}}
    assert stack.client.post("/v1/previews", json=preview).content.startswith(b"\x89PNG")
    refused = stack.post(
        "/v1/experiments", {**SPEC, "attack": {"name": "posterize", "levels": 1}}, status=422
    )
    assert refused["errors"][0]["field"] == "attack.levels"

    id = stack.wait(stack.submit(SPEC))["id"]
    arms = {arm["arm"]: arm["seeds"][0] for arm in stack.results(id)["arms"]}
    assert list(arms) == ["undefended", "linear_probing"]
    assert arms["undefended"]["changed_pixels"] > 0.1
    assert all(0 <= arm["attack_success_rate"] <= 1 for arm in arms.values())
    manifest = stack.get(f"/v1/experiments/{id}/manifest")
    assert set(manifest["code"]["plugins"]) == {"posterize", "linear_probing"}
    rows = stack.get("/v1/results", where=["attack.levels=3", "defense.name=linear_probing"])["rows"]
    assert [row["experiment_id"] for row in rows] == [id]


MIXER: dict[str, Any] = {"name": "mlp_mixer", "width": 16, "blocks": 1}


def test_the_service_takes_an_architecture(stack: Stack) -> None:
    assert "mlp_mixer" in [entry["name"] for entry in stack.get("/v1/catalog")["models"]]
    lacking = [{"name": name, "clean_ratio": 0.2} for name in ("anp", "nad", "fine_tuning")]
    refused = stack.post("/v1/experiments", {**SPEC, "model": MIXER, "defenses": lacking}, status=422)
    assert [(error["field"], error["value"]) for error in refused["errors"]] == [
        ("defenses.0.name", "anp"),
        ("defenses.1.name", "nad"),
    ]
    refused = stack.post("/v1/experiments", {**SPEC, "model": {**MIXER, "patch": 3}}, status=422)
    assert "multiple of 3 pixels for mlp_mixer, such as 6 or 9" in json.dumps(refused)

    pruning = {"name": "fine_pruning", "steps": 4, "clean_ratio": 0.2}
    id = stack.wait(stack.submit({**SPEC, "model": MIXER, "defenses": [pruning]}))["id"]
    arms = {arm["arm"]: arm["seeds"][0] for arm in stack.results(id)["arms"]}
    assert list(arms) == ["undefended", "fine_pruning"]
    assert "mlp_mixer" in stack.get(f"/v1/experiments/{id}/manifest")["code"]["plugins"]


def test_faulty_architectures_are_one_line_each_at_start(tmp_path: Path) -> None:
    text = (PLUGINS / "mlp_mixer.py").read_text()
    faults = {
        "no_head": (
            "return self.head(",
            "return self.heads(",
            "AttributeError: 'Mixer' object has no attribute",
        ),
        "shape": (".mean(1))", ").unsqueeze(0)", "the output must be logits [2, 10]; it is [1, 2, 64, 10]"),
        "traits": ("batch_norm=False", "batch_norm=True", "its traits must have batch_norm=False, which is"),
    }
    for name, (old, new, _) in faults.items():
        assert old in text
        (tmp_path / f"{name}.py").write_text(text.replace(old, new).replace('"mlp_mixer"', f'"{name}"'))
    done = bdlab("worker", "--gpu", "none", **{plugins.VARIABLE: str(tmp_path)})
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    for line, (name, (_, _, said)) in zip(lines, faults.items(), strict=True):
        assert f"{name}.py: class MlpMixer cannot be used as an architecture: {said}" in line


def test_the_lab_takes_them_alone(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    done = subprocess.run(
        [sys.executable, "-m", "worker.lab", tmp_path / "spec.json", "--out", tmp_path / "out"],
        env=os.environ | {plugins.VARIABLE: str(PLUGINS)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "linear_probing: clean_accuracy" in done.stdout


def test_the_control_plane_loads_them_without_torch() -> None:
    code = "import sys, app.main; print('torch' in sys.modules, 'worker' in sys.modules)"
    environment = os.environ | {plugins.VARIABLE: str(PLUGINS)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False False"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Loads one file of this content as a plug-in."""

    def loaded(text: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
        plugins._load_plugins.cache_clear()
        plugins.with_plugins(attack._BUILT_IN, PoisoningAttack)
        plugins.with_plugins(defense._BUILT_IN, Defense)
        plugins.with_plugins(model._BUILT_IN, Architecture)

    yield loaded
    plugins._load_plugins.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"posterize"', '"sig"', "class Posterize: the name 'sig' is already used"),
        (
            'name: Literal["posterize"] = "posterize"',
            'name: str = "posterize"',
            "needs a field `name: Literal",
        ),
        ('8, "Number of values per channel."', '8, ""', "the field 'levels' needs a description"),
        ("def implementation(cls)", "def implement(cls)", "needs a classmethod `implementation`"),
        (
            "from app.specs.base import field",
            "from app.specs.base import fields",
            "ImportError: cannot import",
        ),
        ("class Posterize(", "class Posterize[", "SyntaxError"),
    ],
)
def test_a_faulty_file_is_one_line(load: Callable[[str], None], old: str, new: str, said: str) -> None:
    load(ATTACK)
    plugins._load_plugins.cache_clear()
    assert old in ATTACK
    with pytest.raises(plugins.PluginError) as caught:
        load(ATTACK.replace(old, new))
    assert said in str(caught.value)
    assert "mine.py" in str(caught.value)


def test_a_folder_that_is_none_ends_the_command() -> None:
    done = bdlab("migrate", **{plugins.VARIABLE: "/nowhere"})
    assert done.returncode == 1
    assert done.stderr == "BDLAB_PLUGINS_DIR: '/nowhere' is not a folder\n"


def test_changed_code_is_computed_anew_on_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ExperimentSpec.model_validate({**QUICK, "reference": True})
    before = plan(spec)
    monkeypatch.setattr(attack.BadNets, "code", "1" * 64)
    after = plan(spec)
    assert [stage.stream for stage in before] == [stage.stream for stage in after]
    changed = {a.arm for a, b in zip(before, after, strict=True) if a.key != b.key}
    assert changed == {None, "undefended", "abl"}  # the clean arm has nothing to do with the attack


def test_experiments_of_a_deleted_plug_in_can_be_read(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    folder = tmp_path / "plugins"
    shutil.copytree(PLUGINS, folder)
    stack = new_stack(BDLAB_PLUGINS_DIR=str(folder))
    mine = stack.wait(stack.submit(SPEC))
    id, page = mine["id"], f"/experiments/{mine['id']}"
    names = [file["name"] for file in stack.get(f"/v1/experiments/{id}/artifacts")["artifacts"]]
    stack.stop()
    (folder / "posterize.py").unlink()
    stack.start()

    assert stack.experiment(id) == mine
    assert stack.get("/v1/experiments", attack="posterize", fields="*")["experiments"] == [mine]
    assert [arm["arm"] for arm in stack.results(id)["arms"]] == ["undefended", "linear_probing"]
    files = stack.get(f"/v1/experiments/{id}/artifacts")["artifacts"]
    assert [file["name"] for file in files] == names
    assert stack.client.get(files[0]["content"]).status_code == 200
    assert stack.get("/v1/results", where="attack.name=posterize")["rows"]
    for path in (page, f"{page}/explore", f"/new?from={id}", "/", "/leaderboard"):
        assert stack.client.get(path).status_code == 200, path
    assert "skipped" not in stack.client.get(page).text

    for action in ("retry", "reproduce"):
        refused = stack.post(f"/v1/experiments/{id}:{action}", status=409)
        assert "no plug-in defines posterize" in refused["detail"]
    assert "posterize" in stack.post(f"/v1/experiments/{id}/predict", {"index": 0}, status=409)["detail"]
    assert "posterize" in stack.post("/v1/experiments:validate", SPEC, status=422)["errors"][0]["value"]
    assert "no plug-in in BDLAB_PLUGINS_DIR defines posterize" in (stack.home / "logs/api.log").read_text()
    other = stack.wait(stack.submit({**SPEC, "attack": {"name": "badnets", "size": 2}}))["id"]
    assert len(stack.get("/v1/compare", ids=f"{id},{other}")["experiments"]) == 2
    assert stack.client.delete(f"/v1/experiments/{id}").status_code == 204
