"""Bulk insertion of synthetic experiments, with the rows that their runs and the search index would have written."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert

from app.core.database import Base, Database, new_id
from app.core.objects import content_key
from app.core.security import LOCAL
from app.results.search.indexing import describe_arm, indexed_fields
from app.specs.base import digest
from app.specs.experiment import ExperimentSpec
from app.specs.metrics import EFFECTIVENESS
from app.specs.status import TERMINAL
from app.specs.stored import StoredSpec, dataset_label
from app.tables.artifacts import Artifact
from app.tables.experiments import RUNNING, SUCCEEDED, Attempt, Experiment, Label
from app.tables.leaderboard import LeaderboardSetting, LeaderboardValue
from app.tables.results import ResultValue
from app.tables.search import ResultMean, ResultRow, SpecNumber, SpecPart, SpecText
from app.tables.sweeps import Sweep, SweepCell, SweepExperiment

BATCH = 2_000
METRICS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "train_accuracy", "seconds")
OF_ALL = {"manifest.json": "data", "results.json": "table", "results.png": "figure"}
OF_SEED = {
    "curves.png": "figure",
    "dataset.png": "figure",
    "poison.png": "figure",
    "predictions.png": "figure",
    "samples.png": "figure",
    "poisoned_indices.json": "data",
    "stealth.json": "data",
}
OF_ARM = {"model.safetensors": "checkpoint"}
OF_RANKING = {
    "isolation.csv": "data",
    "isolation_images.png": "data",
    "isolation_losses.png": "figure",
    "isolation_ranking.png": "figure",
}
"""The files of a run and their kinds: per experiment, per seed, per arm, and per arm that ranks images."""
RANKING = ("abl", "abl_plus")
DETAILS: dict[str, dict[str, Any]] = {
    "model.safetensors": {"arm": "undefended", "seed": 0, "backdoored": True},
    "isolation_images.png": {
        "columns": 20,
        "height": 32,
        "width": 32,
        "indices": list(range(10_000, 10_200)),
    },
}
ORDER: tuple[type[Base], ...] = (
    Sweep,
    Experiment,
    Label,
    Attempt,
    Artifact,
    SweepExperiment,
    SweepCell,
    ResultValue,
    SpecPart,
    SpecNumber,
    SpecText,
    ResultRow,
    ResultMean,
    LeaderboardSetting,
    LeaderboardValue,
)
"""Tables, each after those that it refers to."""


class Filling:
    """Collects rows and writes them in batches. Counts ``experiments`` and the ``rows`` of results."""

    def __init__(self, database: Database, files: bool = False) -> None:
        """``files``: also write artifact rows (without objects in the store)."""
        self._database, self._files = database, files
        self._batch: dict[type[Base], list[dict[str, Any]]] = {}
        self._parts: dict[str, int] = {}
        self._settings: dict[str, int] = {}
        self.experiments = 0
        self.rows = 0
        random.seed(0)

    def add(self, table: type[Base], **values: Any) -> None:
        self._batch.setdefault(table, []).append(values)

    def flush(self) -> None:
        with self._database.writing() as session:
            for table in (*ORDER, *(t for t in self._batch if t not in ORDER)):
                if self._batch.get(table):
                    session.execute(insert(table.__table__), self._batch[table])
        self._batch.clear()

    def experiment(
        self, spec: ExperimentSpec, at: datetime, status: str = SUCCEEDED, worker: str = ""
    ) -> str:
        """Add one experiment, with results if its status is succeeded; return its id."""
        identity = new_id()
        waiting = status not in (*TERMINAL, RUNNING)
        self.add(
            Experiment,
            id=identity,
            owner_id=LOCAL,
            name=spec.name,
            status=status,
            spec=spec.model_dump(mode="json"),
            spec_hash=spec.spec_hash,
            dataset=spec.dataset.name,
            model=spec.model.name,
            attack=spec.attack.name,
            created_at=at,
            queued_at=at,
            started_at=None if waiting else at,
            finished_at=at + timedelta(minutes=5) if status in TERMINAL else None,
            attempt=0 if waiting else 1,
            attempts_left=3,
            worker=worker if status == RUNNING else None,
            progress={"fraction": 0.5} if status == RUNNING else {},
            stored_bytes=0,
            error={"reason": "the loss is not finite", "attempt": 1} if status == "failed" else None,
        )
        for key, value in spec.tags.items():
            self.add(Label, experiment_id=identity, kind="tag", key=key, value=value)
        for defense in spec.defenses:
            self.add(Label, experiment_id=identity, kind="defense", key=defense.name, value="")
        if not waiting:
            self._attempt(identity, at, status, worker)
        if status == SUCCEEDED:
            for arm in spec.arms:
                self._arm(identity, spec, arm, at)
            if self._files:
                self._batch[Experiment][-1]["stored_bytes"] = self._leave_files(identity, spec, at)
        self.experiments += 1
        if self.experiments % BATCH == 0:
            self.flush()
        return identity

    def sweep(self, kind: str, name: str, spec: dict[str, Any], at: datetime) -> str:
        """Add a sweep or study without cells; return its id."""
        identity = new_id()
        self.add(Sweep, id=identity, owner_id=LOCAL, kind=kind, name=name, spec=spec, created_at=at)
        return identity

    def cells(
        self, sweep: str, experiment: str, where: dict[str, Any], cells: Sequence[tuple[int, dict[str, Any]]]
    ) -> None:
        """Add an experiment's ``cells`` (number, coordinates) to a sweep or study; those of a study name their arm."""
        self.add(SweepExperiment, sweep_id=sweep, experiment_id=experiment, made=True, coordinates=where)
        for number, coordinates in cells:
            arm = coordinates.get("arm")
            self.add(
                SweepCell,
                sweep_id=sweep,
                number=number,
                coordinates=coordinates,
                experiment_id=experiment,
                arm=arm,
            )

    def _attempt(self, identity: str, at: datetime, status: str, worker: str) -> None:
        ended = status in TERMINAL
        self.add(
            Attempt,
            experiment_id=identity,
            number=1,
            worker=worker or "host:1:experiments",
            started_at=at,
            finished_at=at + timedelta(minutes=5) if ended else None,
            outcome=status if ended else None,
        )

    def _leave_files(self, identity: str, spec: ExperimentSpec, at: datetime) -> int:
        """Add the artifact rows of an experiment; return their total bytes."""
        found: list[tuple[str, str, str | None, int | None]] = []
        found += [(name, kind, None, None) for name, kind in OF_ALL.items()]
        for seed in spec.seeds:
            found += [(f"seed-{seed}/{name}", kind, None, seed) for name, kind in OF_SEED.items()]
            for arm in spec.arms:
                names = OF_ARM | (OF_RANKING if arm in RANKING else {})
                found += [(f"seed-{seed}/{arm}/{name}", kind, arm, seed) for name, kind in names.items()]
        total = 0
        for name, kind, arm, seed in found:
            total += (size := random.randint(300, 120_000))
            sha256 = random.randbytes(32).hex()
            self.add(
                Artifact,
                id=new_id(),
                experiment_id=identity,
                arm=arm,
                seed=seed,
                name=name,
                kind=kind,
                media_type="image/png" if name.endswith(".png") else "application/octet-stream",
                size=size,
                sha256=sha256,
                object_key=content_key(sha256),
                details=DETAILS.get(name.rpartition("/")[2], {}),
                created_at=at,
                expired_at=None,
            )
        return total

    def _arm(self, identity: str, spec: ExperimentSpec, arm: str, at: datetime) -> None:
        described = describe_arm(StoredSpec(spec.model_dump(mode="json")), arm)
        ids: dict[str, int | None] = {"defense_id": None}
        for name, fields in described.parts.items():
            key = digest([name, fields])
            if key not in self._parts:
                self._parts[key] = len(self._parts) + 1
                self.add(SpecPart, id=self._parts[key], digest=key)
                for path, value in indexed_fields(name, fields).items():
                    table = SpecText if isinstance(value, str) else SpecNumber
                    self.add(table, part_id=self._parts[key], path=path, value=value)
            ids[f"{name}_id"] = self._parts[key]
        self.rows += 1
        common = {"experiment_id": identity, "arm": arm}
        self.add(
            ResultRow,
            id=self.rows,
            owner_id=LOCAL,
            name=spec.name,
            created_at=at,
            seeds=len(spec.seeds),
            setting=described.setting,
            **common,
            **ids,
        )
        values = {
            metric: [random.random() ** (3 if metric == "attack_success_rate" else 0.2) for _ in spec.seeds]
            for metric in METRICS
        }
        for metric, numbers in values.items():
            for seed, number in zip(spec.seeds, numbers, strict=True):
                self.add(ResultValue, seed=seed, metric=metric, value=number, **common)
            self._mean(metric, sum(numbers) / len(numbers), len(numbers))
        self._mean(EFFECTIVENESS, 0.85, len(spec.seeds))
        if described.setting in self._settings:
            return
        self._settings[described.setting] = len(self._settings) + 1
        self.add(
            LeaderboardSetting,
            id=self._settings[described.setting],
            owner_id=LOCAL,
            setting=described.setting,
            dataset=dataset_label(described.parts["dataset"]),
            model=spec.model.name,
            attack=spec.attack.name,
            defense=described.defense,
            poisoning_rate=getattr(spec.attack, "poisoning_rate", None),
            seeds=len(spec.seeds),
        )
        for seed, clean, attack in zip(
            spec.seeds, values["clean_accuracy"], values["attack_success_rate"], strict=True
        ):
            self.add(
                LeaderboardValue,
                setting_id=self._settings[described.setting],
                seed=seed,
                clean_accuracy=clean,
                attack_success_rate=attack,
                defense_effectiveness=0.85,
                **common,
            )

    def _mean(self, metric: str, mean: float, n: int) -> None:
        """Add a mean to the current result row, with an arbitrary interval."""
        low, high = (mean - 0.01, mean + 0.01) if n > 1 else (None, None)
        self.add(ResultMean, row_id=self.rows, metric=metric, mean=mean, low=low, high=high, n=n)


def varied(n: int) -> ExperimentSpec:
    """A random spec; nearly every ``n`` gives a different one."""
    rate = random.choice((0.1, round(random.uniform(0.01, 0.5), 4)))
    return ExperimentSpec.model_validate(
        {
            "name": f"run {n}",
            "dataset": {"name": random.choice(("digits", "cifar10", "cifar10", "gtsrb"))},
            "model": {"name": random.choice(("resnet18", "resnet18", "small_cnn", "wide_resnet_16_1"))},
            "attack": {
                "name": random.choice(("badnets", "blend", "sig", "wanet", "refool", "trojan")),
                "poisoning_rate": rate,
            },
            "defenses": [
                {"name": "abl", "isolation_ratio": round(random.uniform(0.005, 0.1), 3)},
                {"name": random.choice(("nad", "anp", "fine_pruning"))},
            ],
            "seeds": [2 * (n % 3), 2 * (n % 3) + 1],
            "tags": {"study": f"study-{n % 500}"},
        }
    )
