"""The manifests for Kubernetes: they fit each other, the images, the settings and the code."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from app.operations.health import telemetry
from app.settings import Settings
from bdlab.cli import app
from tests.app.conftest import document
from tests.databases import migrate
from worker.__main__ import WORKERS

ROOT = Path(__file__).parent.parent
BASE, SCALING = (ROOT / "deploy/kubernetes" / name for name in ("base", "autoscaling"))
NOT_OURS = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
    *("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
}


def documents(folder: Path) -> list[dict[str, Any]]:
    """Every object that the folder's kustomization lists."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = [folder / name for name in kustomization["resources"] if not name.startswith("..")]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


OBJECTS = documents(BASE)
WORKLOADS = [o for o in OBJECTS if o["kind"] in ("Deployment", "Job")]
PODS = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in WORKLOADS}


def container(name: str) -> dict[str, Any]:
    (only,) = PODS[name]["containers"]
    return only


def environment() -> dict[str, str]:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    scaled = yaml.safe_load((SCALING / "kustomization.yaml").read_text())
    literals = [
        line for k in (kustomization, scaled) for g in k["configMapGenerator"] for line in g["literals"]
    ]
    (secret,) = kustomization["secretGenerator"]
    assert secret["envs"] == ["secrets.env"]
    lines = [*literals, *(BASE / "secrets.env.example").read_text().splitlines()]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_every_file_is_used() -> None:
    for folder in (BASE, SCALING):
        listed = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]) - {"../base"}
        assert {path.name for path in folder.glob("*.yaml")} == listed | {"kustomization.yaml"}


def test_every_process_is_there_and_every_one_is_locked_in() -> None:
    assert set(PODS) == {"migration", "api", "relay", "gpu-worker", "cpu-worker", "interactive", "checks"}
    images = {i["name"] for i in yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]}
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    uid = int(re.findall(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())[0])
    for name, pod in PODS.items():
        one = container(name)
        assert one["image"] in images
        assert one["image"].removeprefix("bdlab-") in stages
        assert (one["image"] == "bdlab-worker") == (name.endswith("worker") or name in WORKERS), name
        assert pod["securityContext"]["runAsUser"] == uid
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"memory"} <= set(one["resources"]["limits"])
        mounted = {mount["name"] for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container("gpu-worker")["resources"]["limits"]["nvidia.com/gpu"] == 1
    claims = {o["metadata"]["name"] for o in OBJECTS if o["kind"] == "PersistentVolumeClaim"}
    for pod in PODS.values():
        used = {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        }
        assert used <= claims


@pytest.mark.parametrize("name", PODS)
def test_every_command_exists(name: str) -> None:
    words = container(name)["command"]
    match words:
        case ["bdlab", first, *rest]:
            command: Any = typer.main.get_command(app)
            command = command.commands[first]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= options
            kinds = [word for word in rest if word in WORKERS]
            assert kinds == ([name] if name in WORKERS else [])
        case ["python", "-m", module]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case _:
            in_image = re.findall(r"^CMD \[(.*)\]$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
            assert shlex.join(words) == shlex.join(yaml.safe_load(f"[{in_image}]"))


def test_every_setting_exists_and_fits() -> None:
    settings = {f"BDLAB_{name.upper()}" for name in Settings.model_fields}
    assert set(environment()) <= settings | NOT_OURS
    ours = {k.removeprefix("BDLAB_").lower(): v for k, v in environment().items() if k in settings}
    made = Settings(**{key: value.partition(" #")[0] for key, value in ours.items()})
    assert made.database.startswith("postgresql+psycopg://")
    home = {m["name"]: m["mountPath"] for m in container("gpu-worker")["volumeMounts"]}
    assert home["home"] == str(made.home)
    assert home["data-sets"] == str(made.data_dir)


def test_a_worker_has_longer_to_hand_over_than_a_run_to_react() -> None:
    grace = float(environment()["BDLAB_CANCEL_GRACE_SECONDS"])
    for name in ("gpu-worker", "cpu-worker"):
        assert PODS[name]["terminationGracePeriodSeconds"] > grace
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("worker", "cpu-worker"):
        assert float(compose[name]["stop_grace_period"].removesuffix("s")) > Settings().cancel_grace_seconds


def test_every_probe_asks_a_route_that_there_is() -> None:
    paths = document()["paths"]
    one = container("api")
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = one[probe]["httpGet"]
        assert "get" in paths[asked["path"]]
        assert str(ports[asked["port"]]) in one["command"]
    (service,) = (o for o in OBJECTS if o["kind"] == "Service")
    assert service["metadata"]["annotations"]["prometheus.io/path"] in paths
    assert service["spec"]["selector"] == {"app": "bdlab", "part": "api"}


def test_autoscaling_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    from app.core.context import Context  # noqa: PLC0415

    settings = Settings(home=tmp_path)
    migrate(settings.database)
    context = Context.open(settings)
    told = telemetry.render(context, "1").decode()
    context.close()
    scaled = documents(SCALING)
    assert {o["spec"]["scaleTargetRef"]["name"] for o in scaled} == {"gpu-worker", "cpu-worker"}
    for one in scaled:
        (trigger,) = one["spec"]["triggers"]
        queries = re.findall(r"bdlab_\w+\{[^}]*\}", trigger["metadata"]["query"])
        assert len(queries) == 2
        for query in queries:
            assert f"\n{query} " in told
            assert f'queue="{one["metadata"]["name"].removesuffix("-worker")}"' in query
    patched = yaml.safe_load((SCALING / "kustomization.yaml").read_text())["patches"]
    assert {p["target"]["name"] for p in patched} == {"gpu-worker", "cpu-worker"}
