"""Copying an experiment to MLflow: a real API, and a real tracking store (SQLite) behind MLflow's own client."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.core.database import utcnow
from app.tables.artifacts import Artifact
from app.tables.results import ArmNote, MetricPoint
from bdlab import Client
from bdlab.commands.export import mlflow as command
from bdlab.errors import ApiError, MissingPackageError
from tests.app.conftest import QUICK, Service
from tests.app.numbers import arm, record
from tests.test_cli import bdlab

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVE = [(1, 2.0), (2, 1.0)]
MODEL = "seed-0/abl/model.safetensors"


@pytest.fixture(scope="module")
def id(service: Service) -> str:
    """An experiment that has ended: two arms, curves, a warning, files."""
    made: str = service.submit({**QUICK, "name": "for MLflow", "defenses": [{"name": "abl"}]})["id"]
    record(service, made, {("undefended", 0): arm(0.9, 1.0), ("abl", 0): arm(0.8, 0.1)})
    of_abl = {"experiment_id": made, "arm": "abl", "seed": 0}
    service.add(*(MetricPoint(**of_abl, name="train_loss", step=step, value=value) for step, value in CURVE))
    service.add(ArmNote(**of_abl, kind="warning", message="lost accuracy"))
    for name, kind, data in ((MODEL, "checkpoint", b"weights"), ("manifest.json", "data", b"{}")):
        digest, key = service.store(data)
        of = of_abl if name == MODEL else {"experiment_id": made, "arm": None, "seed": None}
        more = {"size": len(data), "sha256": digest, "object_key": key, "details": {}, "created_at": utcnow()}
        service.add(Artifact(**of, name=name, kind=kind, media_type="application/octet-stream", **more))
    service.end(made)
    return made


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)  # MLflow keeps the files of an SQLite store in the folder it is used in
        yield f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def tracking(uri: str) -> "MlflowClient":
    # Takes seconds, in each process that collects this file.
    from mlflow import MlflowClient  # noqa: PLC0415

    return MlflowClient(uri)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


def test_spec_numbers_curves_and_files_are_copied(
    client: Client, id: str, uri: str, tracking: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Path:
        raise OSError("the line is cut")

    with monkeypatch.context() as patched:
        patched.setattr(Client, "download", broken)
        with pytest.raises(OSError, match="line is cut"):
            client.to_mlflow(id, uri)
    run = client.to_mlflow(id, uri)
    assert client.to_mlflow(id, uri) == run  # once is enough

    into = tracking.get_experiment_by_name("backdoor-lab").experiment_id
    found = {one.info.run_name: one for one in tracking.search_runs([into])}
    assert set(found) == {"for MLflow", "undefended, seed 0", "abl, seed 0"}  # nothing of the broken one
    whole, abl = found["for MLflow"], found["abl, seed 0"]
    assert whole.info.run_id == run
    assert whole.info.status == abl.info.status == "FINISHED"
    assert whole.data.params["attack.name"] == "badnets"
    assert (
        whole.data.params["defenses.abl.isolation_ratio"]
        == abl.data.params["defense.isolation_ratio"]
        == "0.01"
    )
    assert whole.data.tags["study"] == "tests"
    assert whole.data.tags["bdlab.experiment_id"] == id
    assert whole.data.metrics["abl/clean_accuracy"] == abl.data.metrics["clean_accuracy"] == 0.8
    assert abl.data.tags["mlflow.parentRunId"] == run
    assert abl.data.tags["bdlab.warnings"] == "lost accuracy"
    points = tracking.get_metric_history(abl.info.run_id, "curve/train_loss")
    assert [(point.step, point.value) for point in points] == CURVE
    assert [file.path for file in tracking.list_artifacts(abl.info.run_id, "seed-0/abl")] == [MODEL]
    assert [file.path for file in tracking.list_artifacts(run)] == ["manifest.json"]

    again = bdlab("export", "mlflow", id, "--tracking-uri", uri, BDLAB_URL=client.url)
    assert again.stdout == f"{run}\n", again


def test_files_that_the_key_may_not_read_are_left_out_and_counted(
    client: Client, id: str, uri: str, tracking: "MlflowClient", monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Path:
        raise ApiError(403, "Forbidden", "this file carries a backdoor", [])

    monkeypatch.setattr(Client, "download", refused)
    kept = tracking.get_run(client.to_mlflow(id, uri, name="without files"))
    assert kept.data.tags["bdlab.files_left_out"] == "2"


def test_the_command_prints_the_id_alone(
    client: Client,
    id: str,
    uri: str,
    tracking: "MlflowClient",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """MLflow's client prints links if the server is reached over HTTP."""
    end = type(tracking).set_terminated

    def chatty(self: "MlflowClient", *given: Any) -> None:
        end(self, *given)
        print("View run at: http://tracking")

    monkeypatch.setattr(type(tracking), "set_terminated", chatty)
    command(id, tracking_uri=uri, experiment="printed", files=False, url=client.url)
    printed = capsys.readouterr()
    [run] = tracking.search_runs(
        [tracking.get_experiment_by_name("printed").experiment_id],
        "tags.`bdlab.experiment_id` != ''",
    )
    assert printed.out == f"{run.info.run_id}\n"
    assert "View run at" in printed.err


def test_what_cannot_be_copied_is_said_in_one_line(
    service: Service, client: Client, id: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = service.submit()["id"]
    refused = bdlab("export", "mlflow", queued, "--tracking-uri", uri, BDLAB_URL=service.url)
    assert refused.returncode == 2
    assert (
        refused.stderr == f"bdlab: experiment {queued} is queued; only an ended experiment can be exported\n"
    )
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingPackageError, match=r'pip install "backdoor-lab\[mlflow\]"'):
        client.to_mlflow(id, uri)
