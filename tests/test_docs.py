"""Documentation that tests keep true: specs validate, commands exist, curl examples run against the live service."""

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from app.core.validation import members, name_of
from app.data.catalog import service as catalog
from app.settings import Settings
from app.specs.checks import find_problems
from app.specs.defenses.base import Defense
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.metrics import METRICS
from bdlab.cli import app
from bdlab.commands.batches import SubmitGroup
from tests.conftest import Stack
from tests.quick import QUICK

ROOT = Path(__file__).parent.parent
GUIDES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/defenses").glob("*.md"))]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
EXAMPLES = sorted((ROOT / "examples").glob("*.json"))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")
COMMAND_LINE_ONLY = {"BDLAB_URL", "BDLAB_API_KEY"}
COMPOSE = ROOT / "docker-compose.yml"


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of ``language``, with the document's name."""
    return [
        (path.name, text)
        for path in DOCS
        for kind, text in BLOCK.findall(path.read_text())
        if kind == language
    ]


def settings() -> set[str]:
    return {f"BDLAB_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize(("name", "text"), blocks("json"))
def test_every_spec_in_the_documents_is_valid(name: str, text: str) -> None:
    ExperimentSpec.model_validate_json(text)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_run_on_its_data_set(path: Path) -> None:
    spec = ExperimentSpec.model_validate_json(path.read_bytes())
    assert find_problems(spec, BUILT_IN[spec.dataset.name]) == []
    assert spec.name


def test_the_curl_examples_of_the_readme_work_in_their_order(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    for example in EXAMPLES:
        (tmp_path / "examples" / example.name).write_text(example.read_text())
    (tmp_path / "examples/digits-badnets-abl.json").write_text(json.dumps(QUICK))  # seconds, not a minute
    # `validate` refuses data that are not on this host, so the example is checked on a set that is.
    big = json.loads((ROOT / "examples/cifar10-sig-resnet18-abl.json").read_text())
    small = {**big, "dataset": {"name": "digits"}, "attack": {"name": "sig"}}
    (tmp_path / "examples/cifar10-sig-resnet18-abl.json").write_text(json.dumps(small))
    script = "\n".join(text for name, text in blocks("bash") if name == "README.md" and "curl" in text)
    assert script.count("curl") > 10
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr + stack.logs()
    assert '"attack_success_rate"' in done.stdout
    assert "event: state" in done.stdout
    assert "arm,seed,clean_accuracy" in done.stdout
    assert '"probabilities"' in done.stdout
    assert '"spec_hash"' in done.stdout
    for name in ("figure.png", "preview.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "text"), [block for block in blocks("python") if "Client" in block[1]])
def test_python_examples_call_what_there_is(name: str, text: str) -> None:
    from bdlab import Client  # noqa: PLC0415

    used = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "client"
    }
    assert bool(used) == ("import Client" in text)
    with Client("http://127.0.0.1:9") as client:
        assert used <= set(dir(client))


def mentioned_commands() -> list[tuple[str, str]]:
    """Every line that starts with `bdlab` in a block of shell, and every one in backticks."""
    found = []
    for path in DOCS:
        text = path.read_text()
        for kind, block in BLOCK.findall(text):
            if kind == "bash":
                found += [
                    (path.name, line.partition("#")[0])
                    for line in block.splitlines()
                    if line.startswith("bdlab ")
                ]
        found += [(path.name, line) for line in re.findall(r"`(bdlab [^`]+)`", text)]
    return sorted(set(found))


@pytest.mark.parametrize(("name", "line"), mentioned_commands())
def test_every_bdlab_command_in_the_documents_exists(name: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = [word for word in shlex.split(line)[1:] if word not in ("...",)]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if isinstance(command, SubmitGroup) and words[0] not in command.commands:
            words.insert(0, "submit")
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options | {"--help"}, line


def test_every_command_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    text = (ROOT / "docs/client.md").read_text()
    for name, sub in command.commands.items():
        for full in [f"{name} {inner}" for inner in getattr(sub, "commands", {})] or [name]:
            assert f"`bdlab {full}" in text, full


def test_every_make_target_in_the_documents_exists() -> None:
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"make (\w+)", helped))
    for path in [*DOCS, ROOT / ".ci/run"]:
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(), re.MULTILINE)) <= targets, path


def test_every_test_that_is_named_exists() -> None:
    named = {name for path in DOCS for name in re.findall(r"`(tests/[\w/]+\.py)`", path.read_text())}
    assert "tests/app/test_keys.py" in named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_setting_that_is_named_exists_and_every_one_is_documented() -> None:
    for path in [*DOCS, COMPOSE, ROOT / "Dockerfile", ROOT / "Makefile"]:
        named = set(re.findall(r"BDLAB_[A-Z_]+[A-Z]", path.read_text()))
        assert named <= settings() | COMMAND_LINE_ONLY, path
    assert settings() <= set(re.findall(r"BDLAB_[A-Z_]+[A-Z]", (ROOT / "docs/deployment.md").read_text()))


@pytest.mark.parametrize(
    "path", [*DOCS, *sorted((ROOT / "docs/results").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text()):
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    text = BLOCK.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_named_files_of_the_code_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:app|bdlab|worker|tests|migrations|benchmarks|deploy)/[\w./-]+)`", path.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_names_every_guide() -> None:
    index = ROOT / "docs/README.md"
    named = {target for target, _ in LINK.findall(index.read_text())}
    assert {str(path.relative_to(index.parent)) for path in GUIDES} - {"README.md"} <= named


def test_every_attack_has_its_source_and_its_picture() -> None:
    attacks = (ROOT / "docs/attacks.md").read_text()
    for name in catalog.names("attack"):
        if name not in ("none", "given"):
            section = attacks.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
            assert f"(images/attacks/{name}.png)" in section, name
            assert "arxiv.org" in section or "doi.org" in section, name


@pytest.mark.parametrize(
    "defense",
    members(ExperimentSpec.model_fields["defenses"].annotation),
    ids=lambda defense: str(name_of(defense)),
)
def test_every_defense_has_a_section_of_the_common_form(defense: type[Defense]) -> None:
    """One on the page of its kind, with the same items in the same order, and a row in the table of all."""
    name, page = name_of(defense), f"defenses/{defense.kind.replace('_', '-')}.md"
    section = (ROOT / "docs" / page).read_text().partition(f"\n### {name}\n")[2]
    section = re.split(r"\n##+ ", section)[0]
    items = re.findall(r"^- \*\*([\w ]+?)[.:]?\*\*", section, re.MULTILINE)
    assert [item for item in items if item != "Warns when"] == [
        *("Formula", "Assumes", "Cost", "Fails when", "Here", "Source")
    ]
    assert f"[`{name}`]({page}#{name})" in (ROOT / "docs/defenses.md").read_text()


def test_the_table_of_all_defenses_lists_the_catalog() -> None:
    text = (ROOT / "docs/defenses.md").read_text().partition("\n## All methods\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| [\w ]+ \| \[`(\w+)`\]", text, re.MULTILINE)) == sorted(
        catalog.names("defenses")
    )


def test_every_metric_is_explained() -> None:
    text = (ROOT / "docs/reading-numbers.md").read_text()
    for name in METRICS:
        assert f"`{name}`" in text, name


def test_specs_within_shell_examples_are_valid() -> None:
    found = [
        spec for _, text in blocks("bash") for spec in re.findall(r"<<'END'\n(\{.*?)\nEND", text, re.DOTALL)
    ]
    assert found
    for spec in found:
        ExperimentSpec.model_validate_json(spec)


def test_the_compose_file_fits_the_dockerfile_and_the_code() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    services = compose["services"]
    assert {"postgres", "valkey", "s3", "migration", "api", "relay", "worker", "interactive"} <= set(services)
    for name, service in services.items():
        assert {"build", "image"} & set(service), name
        if "build" in service:
            assert service["build"]["target"] in stages, name
        assert set(service.get("depends_on", {})) <= set(services), name
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:"), "TLS is left to a proxy"
    environment = {key: str(value) for key, value in services["api"]["environment"].items()}
    ours = {key: re.sub(r"\$\{.*?\}", "x", value) for key, value in environment.items() if key in settings()}
    made = Settings(**{key.removeprefix("BDLAB_").lower(): value for key, value in ours.items()})
    assert made.database.startswith("postgresql+psycopg://")
    assert made.broker == "redis://valkey:6379/0"
    assert made.objects == "s3://bdlab"
    reserved = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved[0]["capabilities"] == ["gpu"]


def test_the_images_install_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for path in re.findall(r"requirements/\w+\.txt", text):
        assert (ROOT / path).is_file()
    api = text.partition("AS worker-environment")[0]
    assert "torch.txt" not in api
    # The code is installed without build isolation, so the environment must have what builds it.
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        assert f'"{requirement}"' in api
    assert "USER bdlab" in text.partition("AS api\n")[2]
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for path in kept:
        assert (ROOT / path).exists(), path


def test_the_script_for_continuous_integration_can_be_run() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
