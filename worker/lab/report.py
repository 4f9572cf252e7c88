"""The files of a run for people: figures, tables and rankings."""

import csv
import io
import json
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from app.specs.artifacts import DETECTOR
from app.specs.attack import Given, NoAttack
from app.specs.base import canonical_json
from app.specs.defense import DefenseSpec
from app.specs.experiment import ATTACK, ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.metrics import OF_INPUTS, OF_STAGES
from worker.lab.attacks import PoisonedSet
from worker.lab.compute import Compute
from worker.lab.contracts import Recorder, Scope
from worker.lab.data.streamed import Images
from worker.lab.defenses.input_detection import STATE_PREFIX
from worker.lab.evaluation import TestSet, predict_logits
from worker.lab.networks import Network
from worker.lab.sprites import COLUMNS, sprite_sheet
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_files import dump_tensors
from worker.lab.tensor_names import select_prefixed

GRID_IMAGES = 8  # in a grid of test images
TRIGGER_SIDE = 128  # pixels, about, of each part of the picture of a reversed trigger
MOST_SUSPICIOUS = 200  # training images on the sheet of an isolation
Series = dict[str, tuple[list[int], list[float]]]


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _spread(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` of the rows, evenly spread over them."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long().to(rows.device)]


class Report:
    """Collects what the stages of a run recorded, and records the finished files."""

    def __init__(self, spec: ExperimentSpec, facts: DatasetFacts, recorder: Recorder) -> None:
        self.spec = spec
        self.facts = facts
        self.recorder = recorder
        self.series: dict[tuple[str, int], Series] = {}
        self.marks: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        self.predictions: dict[tuple[str, int], list[str]] = {}
        self.truth: dict[int, Tensor | None] = {}
        self.unscored: dict[tuple[str, int], set[str]] = {}
        self.labels: dict[int, Tensor] = {}
        self.images: Images = torch.empty(
            0
        )  # of the current seed only: a dataset may take much of a GPU's memory

    def poisoning_done(self, seed: int, clean: Images, poisoned: PoisonedSet, test: TestSet) -> None:
        """Record which samples were poisoned, and grids of poisoned training and triggered test images.

        ``clean`` are the training images before the attack.
        """
        is_poisoned = poisoned.is_poisoned
        self.truth[seed] = None if is_poisoned is None else is_poisoned.cpu()
        self.labels[seed] = poisoned.labels.cpu()
        self.images = poisoned.images
        if is_poisoned is not None and not isinstance(self.spec.attack, NoAttack):
            document = {
                "indices": is_poisoned.nonzero().flatten().tolist(),
                "cross_indices": poisoned.is_cross.nonzero().flatten().tolist(),
                "training_images": len(poisoned.labels),
            }
            self._file(
                Scope(None, seed),
                f"seed-{seed}/poisoned_indices.json",
                "data",
                "application/json",
                json.dumps(document).encode(),
            )
        if isinstance(self.spec.attack, Given):
            self._given_samples(seed, poisoned, test)
        else:
            self._samples(seed, clean, poisoned, test)

    def _given_samples(self, seed: int, poisoned: PoisonedSet, test: TestSet) -> None:
        """Draw what a dataset that came poisoned says is poisoned; nothing says what the images were before."""
        rows = []
        if poisoned.is_poisoned is not None and poisoned.is_poisoned.any():
            marked = poisoned.is_poisoned.nonzero().flatten()
            rows.append(("poisoned", poisoned.images[_spread(marked, GRID_IMAGES)]))
        if test.triggered is not None and len(test.triggered):
            every = torch.arange(len(test.triggered), device=test.triggered.labels.device)
            rows.append(("triggered", test.triggered.images[_spread(every, GRID_IMAGES)]))
        if rows:
            title = f"what {self.spec.dataset.name} has of the attacker's images: training and test"
            arrays = [(name, _array(images)) for name, images in rows]
            self._figure(Scope(None, seed), f"seed-{seed}/given.png", "image_rows", arrays, None, title)

    def _samples(self, seed: int, clean: Images, poisoned: PoisonedSet, test: TestSet) -> None:
        """Draw poisoned training and triggered test images beside those that they were made from."""
        if test.triggered is None or test.targets is None:
            return
        assert poisoned.is_poisoned is not None
        assert poisoned.clean_labels is not None
        scope = Scope(None, seed)
        attack = f"{self.spec.attack.name} on {self.spec.dataset.name}"
        some, clean_images = self._grid_images(test)
        self._figure(
            scope,
            f"seed-{seed}/samples.png",
            "samples",
            _array(clean_images),
            _array(test.triggered.images[some]),
            self._names(test.triggered.labels[some]),
            self._names(test.targets[some]),
            attack,
        )
        if not (rows := poisoned.is_poisoned.nonzero().flatten()).numel():
            return
        rows = _spread(rows, GRID_IMAGES)
        self._figure(
            scope,
            f"seed-{seed}/poison.png",
            "samples",
            _array(clean[poisoned.origin[rows]]),
            _array(poisoned.images[rows]),
            self._names(poisoned.clean_labels[rows]),
            self._names(poisoned.labels[rows]),
            f"{attack}: training image{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows.tolist()))}",
            "poisoned",
            "training label",
        )

    def stage_done(self, run: StageRun, outcome: Outcome) -> None:
        """Collect a stage's time series; record what it isolated, believes, chose from, or found."""
        arm, seed = run.planned.arm, run.planned.seed
        if arm is None:
            return
        series = self.series.setdefault((arm, seed), {})
        for name, step, value in outcome.history:
            steps, values = series.setdefault(name, ([], []))
            steps.append(run.first_step + step)
            values.append(value)
        self.marks.setdefault((arm, seed), []).append((run.planned.kind, run.first_step + 1))
        self.seconds[arm, seed] = self.seconds.get((arm, seed), 0.0) + outcome.seconds
        if arm == ATTACK and outcome.history:
            self._training_log(run, outcome)
        if "isolated" in outcome.tensors:
            self._isolation(run, outcome)
        if "belief" in outcome.facts:
            self._belief(run, outcome.facts["belief"])
        if "sweep" in outcome.facts:
            columns = {name: torch.tensor(values).double() for name, values in outcome.facts["sweep"].items()}
            self._table(run.scope, f"seed-{seed}/{arm}/sweep.csv", columns)
            self._figure(run.scope, f"seed-{seed}/{arm}/sweep.png", "sweep", outcome.facts["sweep"], arm)
        if "class_flagged" in outcome.tensors:
            self._classes(run, outcome)
        if "class_mask_norm" in outcome.tensors:
            if self.truth[seed] is None:
                self.unscored.setdefault((arm, seed), set()).add("target_class_found")
            self._reversed_triggers(run, outcome)
        if "input_suspicion" in outcome.tensors:
            self._inputs(run, outcome)

    def stage_metrics(self, arm: str, seed: int) -> dict[str, float | None]:
        """The last value of each of `OF_STAGES` that the arm's stages recorded; None for scores without a truth."""
        series = self.series.get((arm, seed), {})
        unscored = self.unscored.get((arm, seed), ())
        values: dict[str, float | None] = {}
        for name in OF_STAGES:
            if name in series:
                values[name] = series[name][1][-1]
            elif name in unscored:
                values[name] = None
        return values

    def computing_seconds(self, arm: str, seed: int) -> float:
        """Computing time of the arm's stages, including those loaded from the store."""
        return self.seconds.get((arm, seed), 0.0)

    def arm_done(self, arm: str, seed: int, test: TestSet, network: Network, compute: Compute) -> None:
        """Collect the arm's predictions for the triggered images of the prediction grid."""
        if test.triggered is not None and test.origin is not None:
            some, _ = self._grid_images(test)
            self.predictions[arm, seed] = self._names(
                predict_logits(network, test.triggered.images[some], compute).argmax(1)
            )

    def seed_done(self, seed: int, test: TestSet) -> None:
        """Record the curves of all arms, and their predictions for the same triggered images."""
        series = {arm: s for (arm, of), s in self.series.items() if of == seed}
        if series:
            marks = {arm: m for (arm, of), m in self.marks.items() if of == seed}
            self._figure(Scope(None, seed), f"seed-{seed}/curves.png", "curves", series, marks)
        predictions = {arm: p for (arm, of), p in self.predictions.items() if of == seed}
        if (
            predictions
            and test.triggered is not None
            and test.targets is not None
            and test.origin is not None
        ):
            some, clean = self._grid_images(test)
            self._figure(
                Scope(None, seed),
                f"seed-{seed}/predictions.png",
                "predictions",
                _array(clean),
                _array(test.triggered.images[some]),
                self._names(test.triggered.labels[some]),
                predictions,
                self._names(test.targets[some][:1])[0],
            )

    def experiment_done(self, arms: list[dict[str, Any]]) -> None:
        """Record the table of results, as a figure and as JSON."""
        self._figure(
            Scope(), "results.png", "results_table", [{"arm": a["arm"], **a["aggregate"]} for a in arms]
        )
        document = json.dumps({"spec": self.spec.model_dump(mode="json"), "arms": arms}, indent=1)
        self._file(Scope(), "results.json", "table", "application/json", document.encode())

    def _training_log(self, run: StageRun, outcome: Outcome) -> None:
        """Record the time series of an attack's own training as CSV, one row per epoch."""
        names = list(dict.fromkeys(name for name, _, _ in outcome.history))
        epochs: dict[int, dict[str, float]] = {}
        for name, epoch, value in outcome.history:
            epochs.setdefault(epoch, {})[name] = value
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["epoch", *names])
        table.writerows(
            [epoch, *(f"{values[n]:.6g}" if n in values else "" for n in names)]
            for epoch, values in epochs.items()
        )
        where = f"seed-{run.planned.seed}/{ATTACK}/{run.planned.kind}.csv"
        self._file(run.scope, where, "data", "text/csv", text.getvalue().encode())

    def _isolation(self, run: StageRun, outcome: Outcome) -> None:
        """Record the samples in order of suspicion, beside the true flags, as a table and as figures."""
        arm, seed = str(run.planned.arm), run.planned.seed
        truth, labels = self.truth[seed], self.labels[seed]
        suspicion, losses = outcome.tensors["suspicion"].cpu(), outcome.tensors.get("losses")
        isolated = torch.zeros_like(labels, dtype=torch.bool)
        isolated[outcome.tensors["isolated"].cpu()] = True
        columns = {"label": labels, "suspicion": suspicion, "isolated": isolated.int()}
        if truth is None:
            scores = ("isolation_precision", "isolation_recall", "isolation_auroc")
            self.unscored.setdefault((arm, seed), set()).update(scores)
        else:
            columns["is_poisoned"] = truth.int()
        if (kept := outcome.tensors.get("kept")) is not None:
            columns["kept"] = torch.zeros_like(labels).index_fill(0, kept.cpu(), 1).int()
        if losses is not None:
            columns["loss"] = losses.cpu()
        order = suspicion.argsort(descending=True, stable=True)
        where = f"seed-{seed}/{arm}/{run.planned.kind}"
        self._table(run.scope, f"{where}.csv", {"index": order} | {n: c[order] for n, c in columns.items()})
        self._suspects_sheet(run.scope, f"{where}_images.png", order[:MOST_SUSPICIOUS])
        if losses is not None:
            self._figure(
                run.scope,
                f"{where}_losses.png",
                "loss_histogram",
                _array(losses),
                None if truth is None else _array(truth),
                _array(isolated),
                f"{arm}: per-sample loss when isolation ends",
            )
        if truth is not None and truth.any() and isolated.any():
            self._figure(
                run.scope,
                f"{where}_ranking.png",
                "ranking",
                _array(suspicion),
                _array(truth),
                int(isolated.sum()),
            )

    def _belief(self, run: StageRun, belief: dict[str, Any]) -> None:
        """Record a defense's belief about the training set, beside the truth, which is null if it is not known."""
        truth, labels = self.truth[run.planned.seed], self.labels[run.planned.seed]
        actual = None
        if truth is not None:
            targets = labels[truth].unique().tolist()
            actual = {
                "poisoned": bool(truth.any()),
                "target_class": targets[0] if len(targets) == 1 else None,
                "poisoning_rate": truth.double().mean().item(),
            }
        document = json.dumps({"believes": belief, "truth": actual}, indent=1)
        where = f"seed-{run.planned.seed}/{run.planned.arm}/belief.json"
        self._file(run.scope, where, "table", "application/json", document.encode())

    def _suspects_sheet(self, scope: Scope, name: str, rows: Tensor) -> None:
        """Record a sheet of the training images ``rows`` as the defense sees them; metadata says how to cut it."""
        images = self.images[rows.to(self.images.device)]
        details = {"columns": min(len(rows), COLUMNS), "height": images.shape[2], "width": images.shape[3]}
        self.recorder.artifact(
            scope, name, "data", "image/png", sprite_sheet(images), details | {"indices": rows.tolist()}
        )

    def _classes(self, run: StageRun, outcome: Outcome) -> None:
        """Record a detection's findings by class: every tensor ``class_*`` ``[K]`` of the stage."""
        columns = select_prefixed(outcome.tensors, "class_", torch.device("cpu"))
        head = {"class": torch.arange(len(self.facts.class_names))}
        where = f"seed-{run.planned.seed}/{run.planned.arm}/classes.csv"
        self._table(
            run.scope, where, head | {n: c.int() if c.dtype == torch.bool else c for n, c in columns.items()}
        )

    def _reversed_triggers(self, run: StageRun, outcome: Outcome) -> None:
        """Record the trigger of each flagged class, or of the class with the smallest mask if none is flagged.

        Each picture has the mask, the pattern, and the pattern under the mask, side by side.
        """
        classes = outcome.tensors["class_flagged"].nonzero().flatten().tolist()
        for label in classes or [int(outcome.tensors["class_mask_norm"].argmin())]:
            pattern = outcome.tensors["pattern"][label].cpu()
            mask = outcome.tensors["mask"][label].cpu().expand_as(pattern)
            parts = (torch.stack([mask, pattern, mask * pattern]) * 255).round().to(torch.uint8)
            scale = max(1, TRIGGER_SIDE // parts.shape[2])
            large = parts.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            self.recorder.artifact(
                run.scope,
                f"seed-{run.planned.seed}/{run.planned.arm}/trigger_{label}.png",
                "figure",
                "image/png",
                sprite_sheet(large),
                {"class": label, "flagged": bool(outcome.tensors["class_flagged"][label])},
            )

    def _inputs(self, run: StageRun, outcome: Outcome) -> None:
        """Record the scores of the test images in order of suspicion, and the detector, which can score others."""
        arm, seed = str(run.planned.arm), run.planned.seed
        state = select_prefixed(outcome.tensors, STATE_PREFIX)
        triggered, suspicion = outcome.tensors["input_triggered"], outcome.tensors["input_suspicion"]
        if not triggered.any():
            self.unscored.setdefault((arm, seed), set()).update(OF_INPUTS)
        columns = {
            "image": outcome.tensors["input_image"],
            "suspicion": suspicion,
            "flagged": (suspicion >= state["threshold"].cpu()).int(),
            "is_triggered": triggered.int(),
        }
        order = suspicion.argsort(descending=True, stable=True)
        where = f"seed-{seed}/{arm}"
        self._table(run.scope, f"{where}/inputs.csv", {name: c[order] for name, c in columns.items()})
        header = {"defense": canonical_json(self._find_defense(arm)), "seed": str(seed)}
        self._file(
            run.scope, f"{where}/{DETECTOR}", "data", "application/octet-stream", dump_tensors(state, header)
        )
        self._figure(
            run.scope,
            f"{where}/inputs.png",
            "suspicion_histogram",
            _array(suspicion),
            _array(triggered),
            state["threshold"].item(),
            f"{arm}: suspicion of test images",
        )

    def _find_defense(self, arm: str) -> DefenseSpec:
        return next(defense for defense in self.spec.defenses if defense.arm_name == arm)

    def _table(self, scope: Scope, name: str, columns: dict[str, Tensor]) -> None:
        """Record columns ``[N]`` as CSV; floats with seven digits."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(columns)
        cells = ([f"{v:.7g}" if isinstance(v, float) else v for v in c.tolist()] for c in columns.values())
        table.writerows(zip(*cells, strict=True))
        self._file(scope, name, "data", "text/csv", text.getvalue().encode())

    def _grid_images(self, test: TestSet) -> tuple[Tensor, Tensor]:
        """Rows of the triggered images of a grid, spread over the set, and the clean images they were made from."""
        assert test.triggered is not None
        assert test.origin is not None
        n = len(test.triggered)
        some = torch.linspace(0, n - 1, min(GRID_IMAGES, n)).long().to(test.triggered.labels.device)
        return some, test.clean.images[test.origin[some]]

    def _names(self, labels: Tensor) -> list[str]:
        return [self.facts.class_names[label] for label in labels.tolist()]

    def _figure(self, scope: Scope, name: str, kind: str, *data: Any) -> None:
        try:
            from worker.lab import figures  # noqa: PLC0415  # matplotlib is slow to import, and may be missing
        except ImportError:
            self.recorder.log(f"{name}: left out: matplotlib is not installed")
            return
        self._file(scope, name, "figure", "image/png", getattr(figures, kind)(*data))

    def _file(self, scope: Scope, name: str, kind: Any, media_type: str, data: bytes) -> None:
        self.recorder.artifact(scope, name, kind, media_type, data, {})
