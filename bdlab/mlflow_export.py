"""Copies an experiment to an MLflow tracking server, with MLflow's own client (the extra ``mlflow``).

The experiment becomes a run with the spec as parameters, the means over seeds as metrics, and the files that belong to
no arm. Each arm and seed becomes a child run with its curves, its final numbers and its files.
"""

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.specs.status import TERMINAL
from bdlab.errors import ApiError
from bdlab.optional import optional_import
from bdlab.types import Artifact, Experiment, Json

if TYPE_CHECKING:
    from bdlab.experiments import ExperimentRoutes

DEFAULT_NAME = "backdoor-lab"
REQUIREMENT = "backdoor-lab[mlflow]"
ID, PARENT, NAME = "bdlab.experiment_id", "mlflow.parentRunId", "mlflow.runName"
MAX_VALUE_CHARACTERS = 500
"""The longest parameter that every MLflow server accepts."""
METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100
FORBIDDEN = 403


def export(
    client: "ExperimentRoutes",
    id: str,
    tracking_uri: str | None = None,
    *,
    name: str = DEFAULT_NAME,
    files: bool = True,
) -> str:
    """Copy an ended experiment into the MLflow experiment ``name``; returns the id of its run.

    ``tracking_uri``: by default the environment's MLFLOW_TRACKING_URI. An experiment that was copied before is not
    copied again; an interrupted copy is deleted and started again. Files that the API key may not read (models with a
    backdoor) are left out, and the tag ``bdlab.files_left_out`` counts them.
    Raises MissingPackageError, NotFoundError, and ValueError for an experiment that has not ended.
    """
    mlflow = optional_import("mlflow", REQUIREMENT)
    experiment = client.experiment(id)
    if experiment["status"] not in TERMINAL:
        raise ValueError(
            f"experiment {id} is {experiment['status']}; only an ended experiment can be exported"
        )
    return _Export(client, experiment, mlflow.MlflowClient(tracking_uri), files).run(name)


class _Export:
    def __init__(
        self, client: "ExperimentRoutes", experiment: Experiment, tracking: Any, files: bool
    ) -> None:
        self.client, self.experiment, self.tracking = client, experiment, tracking
        self.id = experiment["id"]
        self.artifacts = client.artifacts(self.id) if files else []
        queued_at = experiment["queued_at"]
        self.started = _milliseconds(experiment["started_at"] or queued_at)
        self.ended = _milliseconds(experiment["finished_at"] or queued_at)
        self.files_left_out = 0

    def run(self, name: str) -> str:
        existing = self.tracking.get_experiment_by_name(name)
        self.target = existing.experiment_id if existing else self.tracking.create_experiment(name)
        for earlier in self.tracking.search_runs([self.target], f"tags.`{ID}` = '{self.id}'"):
            if earlier.info.status != "RUNNING":
                return str(earlier.info.run_id)
            self._delete_run(earlier.info.run_id)
        spec = self.experiment["spec"]
        tags = {
            ID: self.id,
            "bdlab.url": f"{self.client.url}/experiments/{self.id}",
            "bdlab.spec_hash": self.experiment["spec_hash"],
            "bdlab.status": self.experiment["status"],
            **spec["tags"],
        }
        run = self._create_run(spec["name"] or self.id, tags)
        results = self.client.results(self.id)["arms"]
        parameters = {key: value for key, value in spec.items() if key not in ("name", "tags", "defenses")}
        defenses = {defense["arm"] or defense["name"]: defense for defense in spec["defenses"]}
        self._log(run, _flatten(parameters) | _flatten({"defenses": defenses}))
        for arm in results:
            means = {metric: value["mean"] for metric, value in arm["aggregate"].items() if value}
            self._log(run, {}, [(f"{arm['arm']}/{metric}", value, 0) for metric, value in means.items()])
            for numbers in arm["seeds"]:
                self._export_seed(run, arm["arm"], numbers, defenses.get(arm["arm"], {}))
        arms = {(arm["arm"], numbers["seed"]) for arm in results for numbers in arm["seeds"]}
        self._upload(run, [file for file in self.artifacts if (file["arm"], file["seed"]) not in arms])
        self.tracking.set_tag(run, "bdlab.files_left_out", str(self.files_left_out))
        self._end_run(run, failed=self.experiment["status"] != "succeeded")
        return run

    def _export_seed(self, parent: str, arm: str, numbers: Json, defense: Json) -> None:
        seed = numbers["seed"]
        run = self._create_run(f"{arm}, seed {seed}", {PARENT: parent, "bdlab.arm": arm})
        self._log(run, {"arm": arm, "seed": seed, **_flatten({"defense": defense})})
        points = [
            (f"curve/{series['name']}", value, step)
            for series in self.client.metrics(self.id, arm=arm, seed=seed)["series"]
            for step, value in zip(series["steps"], series["values"], strict=True)
            if value is not None
        ]
        points += [(n, v, 0) for n, v in numbers.items() if isinstance(v, int | float) and n != "seed"]
        self._log(run, {}, points)
        for note in ("error", "warnings"):
            if numbers.get(note):
                text = numbers[note] if isinstance(numbers[note], str) else "; ".join(numbers[note])
                self.tracking.set_tag(run, f"bdlab.{note}", text)
        self._upload(run, [file for file in self.artifacts if (file["arm"], file["seed"]) == (arm, seed)])
        self._end_run(run, failed=bool(numbers.get("error")))

    def _create_run(self, name: str, tags: dict[str, str]) -> str:
        run = self.tracking.create_run(self.target, self.started, {**tags, NAME: name})
        return str(run.info.run_id)

    def _end_run(self, run: str, *, failed: bool) -> None:
        self.tracking.set_terminated(run, "FAILED" if failed else "FINISHED", self.ended)

    def _log(self, run: str, parameters: Json, points: list[tuple[str, float, int]] | None = None) -> None:
        entities = optional_import("mlflow.entities", REQUIREMENT)
        params = [entities.Param(key, str(value)[:MAX_VALUE_CHARACTERS]) for key, value in parameters.items()]
        metrics = [entities.Metric(n, float(v), self.ended, step) for n, v, step in points or []]
        for i in range(0, len(params), PARAMETERS_PER_CALL):
            self.tracking.log_batch(run, params=params[i : i + PARAMETERS_PER_CALL])
        for i in range(0, len(metrics), METRICS_PER_CALL):
            self.tracking.log_batch(run, metrics=metrics[i : i + METRICS_PER_CALL])

    def _upload(self, run: str, artifacts: list[Artifact]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for artifact in artifacts:
                name = Path(artifact["name"])
                try:
                    file = self.client.download(artifact, Path(folder) / name)
                except ApiError as error:
                    if error.status != FORBIDDEN:
                        raise
                    self.files_left_out += 1
                    continue
                parent = name.parent.as_posix() if name.parent.name else None
                self.tracking.log_artifact(run, str(file), parent)
                file.unlink()

    def _delete_run(self, run: str) -> None:
        for child in self.tracking.search_runs([self.target], f"tags.`{PARENT}` = '{run}'"):
            self.tracking.delete_run(child.info.run_id)
        self.tracking.delete_run(run)


def _flatten(value: Any, path: str = "") -> Json:
    """``{"attack": {"name": "sig"}}`` as ``{"attack.name": "sig"}``; a list is one value."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v for name, part in value.items() for k, v in _flatten(part, f"{path}.{name}".lstrip(".")).items()
    }


def _milliseconds(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)
