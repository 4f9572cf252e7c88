"""The interface of defenses: what each kind may see and do.

A training defense sees the images and labels of the poisoned set; a repair defense a trained model and, if it needs
them, a small clean set or the images of the poisoned set; a detection defense the poisoned set and the model trained on
it. None of them sees the true flags or a test image: what is measured with these while it runs goes to the recorder
only. An input detection sees a trained model, for some methods a small clean set, and once its threshold is fixed the
inputs that the lab has it score; it is not told which of them are triggered.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.specs.defenses.base import VICTIM
from app.specs.facts import DatasetFacts
from worker.lab.compute import Compute
from worker.lab.contracts import Recorder
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.input_scores import InputScores, ScoreInputs
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import AfterEpoch, ChooseRows, Recipe, record_nothing, train


@dataclass(frozen=True)
class Harness:
    """Measures with test data and true flags on behalf of the experiment; defenses must not use it themselves."""

    curve: Callable[[Network], dict[str, float]]
    score: Callable[[Tensor, Tensor], dict[str, float]]
    """(suspicion ``[N]``, isolated rows ``[K]``) to the numbers of `evaluation.isolation_quality`."""
    before_unlearning: Callable[[Network], dict[str, float]]
    """A network to its clean accuracy and attack success on the whole test set, under names of their own."""
    label_accuracy: Callable[[Tensor, Tensor], dict[str, float]]
    """(rows ``[K]``, labels ``[K]`` given to them) to the share of the labels that are true."""
    score_classes: Callable[[Tensor], dict[str, float]]
    """Flagged classes, bool ``[classes]``, to whether the attack's target is among them."""
    score_inputs: Callable[[ScoreInputs, float, StageRun], tuple[InputScores, dict[str, float]]]
    """(score, threshold, stage) to the scores of the test images, and their `evaluation.input_detection_quality`."""


@dataclass(frozen=True, kw_only=True)
class Defense:
    """What every defense may use."""

    facts: DatasetFacts
    seed: int
    compute: Compute
    recorder: Recorder
    new_network: Callable[[str], Network]
    """A new network of the victim's architecture; its weights follow from the seed and the given purpose."""
    recipe: Recipe
    """The experiment's training recipe with augmentation resolved; copy it with `dataclasses.replace`."""
    stage: Callable[[str, Callable[[StageRun], Outcome]], Outcome]
    """Run the stage of that kind, or load it from the store; the spec's ``stages()`` must declare it."""
    _harness: Harness

    def fit_on(
        self,
        run: StageRun,
        network: Network,
        split: Split,
        recipe: Recipe,
        *,
        rows: Tensor | ChooseRows | None = None,
        after_epoch: AfterEpoch = record_nothing,
    ) -> int:
        """Train on ``split`` (or some rows of it), recording the usual curves; returns the epochs done."""

        def observe(network: Network, epoch: int) -> dict[str, float]:
            return self._harness.curve(network) | (after_epoch(network, epoch) or {})

        return train(run, network, split.images, split.labels, recipe, rows=rows, after_epoch=observe)

    def record_sweep(self, run: StageRun, network: Network, **values: float) -> None:
        """Add a row to the stage's table of models, ``sweep.csv``: ``values`` and the usual curves' numbers.

        The curves use test data: they inform readers, and the defense must not use them.
        """
        for name, value in (values | self._harness.curve(network)).items():
            run.sweep.setdefault(name, []).append(float(value))

    def record(self, run: StageRun, epoch: int, values: dict[str, float]) -> None:
        """Record numbers of a stage; those named in `app.specs.metrics.OF_STAGES` become metrics of the arm."""
        for name, value in values.items():
            run.history.append((name, epoch, value))
            self.recorder.metric(run.scope, name, run.first_step + epoch, value)

    def record_flagged_classes(self, run: StageRun, flagged: Tensor) -> None:
        """Record whether the target class was flagged (bool ``[classes]``); the defense does not see it."""
        self.record(run, 1, self._harness.score_classes(flagged))

    def warn(self, run: StageRun, message: str) -> None:
        """Add a caveat for readers of the result. It must not depend on true flags or test images."""
        run.warnings.append(message)


@dataclass(frozen=True, kw_only=True)
class TrainingDefense(Defense):
    """Sees the poisoned set."""

    images: Images
    """uint8 ``[N, C, H, W]``, on the device or streamed to it."""
    labels: Tensor
    """int64 ``[N]`` as the attacker left them."""
    clean: CleanSet | None = None
    """None unless the spec inherits `CleanSetDefense`."""

    @property
    def split(self) -> Split:
        """Images and labels together; its rows cost no copy if the images are streamed."""
        return Split(self.images, self.labels)

    def fit(
        self,
        run: StageRun,
        network: Network,
        recipe: Recipe,
        *,
        rows: Tensor | ChooseRows | None = None,
        after_epoch: AfterEpoch = record_nothing,
    ) -> int:
        """Train on the poisoned set (or some rows of it), recording the usual curves; returns the epochs done."""
        return self.fit_on(run, network, self.split, recipe, rows=rows, after_epoch=after_epoch)

    def train_undefended(self) -> Network:
        """Train the undefended model, by the experiment's recipe on the poisoned set.

        Its stage, `VICTIM`, is shared with the undefended arm where that is trained from scratch, too.
        """
        network = self.new_network("victim")

        def compute(run: StageRun) -> Outcome:
            self.fit(run, network, replace(self.recipe, memory={}))
            return run.finish(copy_state(network))

        return load_state(network, self.stage(VICTIM, compute).tensors, self.compute.device)

    def record_isolation(
        self, run: StageRun, epoch: int, suspicion: Tensor, isolated: Tensor, *, final: bool = True
    ) -> None:
        """Record an isolation's quality against the true flags; the defense does not see them.

        Unless ``final``, only precision, recall and AUROC, which are shown as curves.
        """
        values = self._harness.score(suspicion, isolated)
        self.record(run, epoch, {n: v for n, v in values.items() if final or n.startswith("isolation_")})

    def record_clean_subset(self, run: StageRun, epoch: int, suspicion: Tensor, kept: Tensor) -> None:
        """Record how much of a subset, rows ``kept`` ``[K]``, is clean, and the AUROC of ``suspicion`` ``[N]``."""
        values = self._harness.score(suspicion, kept)
        if "isolation_precision" in values:
            purity = {"clean_subset_purity": 1 - values["isolation_precision"]}
            self.record(run, epoch, purity | {"isolation_auroc": values["isolation_auroc"]})

    def record_before_unlearning(self, run: StageRun, epoch: int, network: Network) -> None:
        """Record accuracy and attack success of ``network``, which is about to be unlearned."""
        self.record(run, epoch, self._harness.before_unlearning(network))

    def record_label_accuracy(self, run: StageRun, epoch: int, rows: Tensor, labels: Tensor) -> None:
        """Record the share of new ``labels`` ``[K]`` of ``rows`` that are true; the defense does not see it."""
        self.record(run, epoch, self._harness.label_accuracy(rows, labels))


@dataclass(frozen=True, kw_only=True)
class DataFreeRepair(Defense):
    """Sees a trained model and no image."""

    victim: Network
    """The undefended victim; a copy that the defense may change."""


@dataclass(frozen=True, kw_only=True)
class UnlabeledRepair(DataFreeRepair):
    """Sees a trained model and the images of the poisoned set, without labels."""

    images: Images
    """uint8 ``[N, C, H, W]``, on the device or streamed to it."""


@dataclass(frozen=True, kw_only=True)
class RepairDefense(DataFreeRepair):
    """Sees a trained model and a small clean set, not the poisoned set."""

    clean: CleanSet


@dataclass(frozen=True, kw_only=True)
class DetectionDefense(TrainingDefense):
    """Sees the poisoned set and the model trained on it."""

    victim: Network


@dataclass(frozen=True, kw_only=True)
class InputDetectionDefense(Defense):
    """Sees a trained model and, for some methods, a small clean set; never the poisoned set."""

    victim: Network
    """The undefended victim; a copy."""
    clean: CleanSet | None = None
    """None unless the spec inherits `CleanSetDefense`."""

    def score_inputs(self, run: StageRun, score: ScoreInputs, threshold: float) -> InputScores:
        """Have the lab score the test images and record how well ``score``, at ``threshold``, finds triggered ones.

        ``score`` gets them in batches and in random order, and must not keep them.
        """
        scores, quality = self._harness.score_inputs(score, threshold, run)
        self.record(run, 1, quality)
        return scores


def copy_state(network: Network) -> dict[str, Tensor]:
    """A copy of a network's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def load_state(network: Network, tensors: dict[str, Tensor], device: torch.device) -> Network:
    """Load ``tensors`` into ``network`` and move it to ``device``."""
    network.load_state_dict(tensors)
    return network.to(device)
