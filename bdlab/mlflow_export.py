"""Copying an experiment to an MLflow tracking server, by MLflow's own client (the extra ``mlflow``).

The experiment becomes a run with the spec as parameters, the means over seeds as metrics, and the files that belong to
no arm. Below it each arm and seed is a run of its own, with its curves, its final numbers and its files.
"""

import tempfile
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from app.specs.status import TERMINAL
from bdlab.base_client import Client
from bdlab.errors import ApiError, MissingPackageError
from bdlab.types import Artifact, Experiment

Json = dict[str, Any]
DEFAULT_NAME = "backdoor-lab"
ID, PARENT, NAME = "bdlab.experiment_id", "mlflow.parentRunId", "mlflow.runName"
LONGEST_VALUE = 500
"""Characters of a parameter that every MLflow server takes."""
METRICS_A_CALL, PARAMETERS_A_CALL = 1000, 100
FORBIDDEN = 403


def export(
    client: Client, id: str, tracking_uri: str | None = None, *, name: str = DEFAULT_NAME, files: bool = True
) -> str:
    """Copy an ended experiment into the MLflow experiment ``name``; returns the id of its run.

    ``tracking_uri``: None takes the environment's MLFLOW_TRACKING_URI. One that was copied before is not copied again;
    what an earlier call began and did not finish is deleted and made anew. Files that the API key may not read (models
    with a backdoor) are left out, and the tag ``bdlab.files_left_out`` says how many.
    Raises MissingPackageError, NotFoundError, ValueError for an experiment that has not ended.
    """
    try:
        mlflow = import_module("mlflow")
    except ImportError as error:
        raise MissingPackageError("mlflow is not installed; run `pip install mlflow-skinny`") from error
    experiment = client.experiment(id)
    if experiment["status"] not in TERMINAL:
        raise ValueError(
            f"experiment {id} is {experiment['status']}; only one that has ended can be exported"
        )
    return _Export(client, experiment, mlflow.MlflowClient(tracking_uri), files).run(name)


class _Export:
    def __init__(self, client: Client, experiment: Experiment, tracking: Any, files: bool) -> None:
        self.client, self.experiment, self.tracking = client, experiment, tracking
        self.id = experiment["id"]
        self.artifacts = client.artifacts(self.id) if files else []
        queued = experiment["queued_at"]
        self.began = _milliseconds(experiment["started_at"] or queued)
        self.ended = _milliseconds(experiment["finished_at"] or queued)
        self.left_out = 0

    def run(self, name: str) -> str:
        found = self.tracking.get_experiment_by_name(name)
        self.into = found.experiment_id if found else self.tracking.create_experiment(name)
        for earlier in self.tracking.search_runs([self.into], f"tags.`{ID}` = '{self.id}'"):
            if earlier.info.status != "RUNNING":
                return str(earlier.info.run_id)
            self._delete(earlier.info.run_id)
        spec = self.experiment["spec"]
        tags = {
            ID: self.id,
            "bdlab.url": f"{self.client.url}/experiments/{self.id}",
            "bdlab.spec_hash": self.experiment["spec_hash"],
            "bdlab.status": self.experiment["status"],
            **spec["tags"],
        }
        whole = self._create(spec["name"] or self.id, tags)
        results = self.client.results(self.id)["arms"]
        kept = {key: value for key, value in spec.items() if key not in ("name", "tags", "defenses")}
        defenses = {defense["arm"] or defense["name"]: defense for defense in spec["defenses"]}
        self._log(whole, _flat(kept) | _flat({"defenses": defenses}))
        for arm in results:
            means = {metric: value["mean"] for metric, value in arm["aggregate"].items() if value}
            points = [(f"{arm['arm']}/{metric}", value, 0) for metric, value in means.items()]
            self._log(whole, {}, points)
            for numbers in arm["seeds"]:
                self._arm(whole, arm["arm"], numbers, defenses.get(arm["arm"], {}))
        self._upload(
            whole, [one for one in self.artifacts if (one["arm"], one["seed"]) not in _arms(results)]
        )
        self.tracking.set_tag(whole, "bdlab.files_left_out", str(self.left_out))
        self._end(whole, failed=self.experiment["status"] != "succeeded")
        return whole

    def _arm(self, parent: str, arm: str, numbers: Json, defense: Json) -> None:
        seed = numbers["seed"]
        run = self._create(f"{arm}, seed {seed}", {PARENT: parent, "bdlab.arm": arm})
        self._log(run, {"arm": arm, "seed": seed, **_flat({"defense": defense})})
        curves = self.client.metrics(self.id, arm=arm, seed=seed)["series"]
        points = [
            (f"curve/{series['name']}", value, step)
            for series in curves
            for step, value in zip(series["steps"], series["values"], strict=True)
            if value is not None
        ]
        points += [(n, v, 0) for n, v in numbers.items() if isinstance(v, int | float) and n != "seed"]
        self._log(run, {}, points)
        for note in ("error", "warnings"):
            if numbers.get(note):
                text = numbers[note] if isinstance(numbers[note], str) else "; ".join(numbers[note])
                self.tracking.set_tag(run, f"bdlab.{note}", text)
        self._upload(run, [one for one in self.artifacts if (one["arm"], one["seed"]) == (arm, seed)])
        self._end(run, failed=bool(numbers.get("error")))

    def _create(self, name: str, tags: dict[str, str]) -> str:
        run = self.tracking.create_run(self.into, self.began, {**tags, NAME: name})
        return str(run.info.run_id)

    def _end(self, run: str, *, failed: bool) -> None:
        self.tracking.set_terminated(run, "FAILED" if failed else "FINISHED", self.ended)

    def _log(self, run: str, parameters: Json, points: list[tuple[str, float, int]] | None = None) -> None:
        entities = import_module("mlflow.entities")
        texts = [entities.Param(key, str(value)[:LONGEST_VALUE]) for key, value in parameters.items()]
        metrics = [entities.Metric(n, float(v), self.ended, step) for n, v, step in points or []]
        for i in range(0, len(texts), PARAMETERS_A_CALL):
            self.tracking.log_batch(run, params=texts[i : i + PARAMETERS_A_CALL])
        for i in range(0, len(metrics), METRICS_A_CALL):
            self.tracking.log_batch(run, metrics=metrics[i : i + METRICS_A_CALL])

    def _upload(self, run: str, artifacts: list[Artifact]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for artifact in artifacts:
                where = Path(artifact["name"])
                try:
                    file = self.client.download(artifact, Path(folder) / where)
                except ApiError as error:
                    if error.status != FORBIDDEN:
                        raise
                    self.left_out += 1
                    continue
                self.tracking.log_artifact(
                    run, str(file), where.parent.as_posix() if where.parent.name else None
                )
                file.unlink()

    def _delete(self, run: str) -> None:
        for child in self.tracking.search_runs([self.into], f"tags.`{PARENT}` = '{run}'"):
            self.tracking.delete_run(child.info.run_id)
        self.tracking.delete_run(run)


def _flat(value: Any, path: str = "") -> Json:
    """``{"attack": {"name": "sig"}}`` as ``{"attack.name": "sig"}``; a list is one value."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v for name, part in value.items() for k, v in _flat(part, f"{path}.{name}".lstrip(".")).items()
    }


def _arms(results: Any) -> set[tuple[str, int]]:
    return {(arm["arm"], numbers["seed"]) for arm in results for numbers in arm["seeds"]}


def _milliseconds(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)
