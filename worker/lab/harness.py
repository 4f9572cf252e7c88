"""What measures a defense: test images and true flags, which the defense itself never sees."""

from collections.abc import Callable

from torch import Tensor

from app.specs.attack import AttackSpec, Given
from worker.lab.attacks import PoisonedSet
from worker.lab.compute import Compute
from worker.lab.data.datasets import Dataset
from worker.lab.defenses.base import Harness
from worker.lab.evaluation import (
    TestSet,
    class_quality,
    evaluate,
    input_detection_quality,
    isolation_quality,
)
from worker.lab.given import find_targets
from worker.lab.input_scores import InputScores, ScoreInputs, score_test_images
from worker.lab.networks import Network
from worker.lab.stages import StageRun

BEFORE_UNLEARNING = {
    "clean_accuracy": "accuracy_before_unlearning",
    "attack_success_rate": "attack_success_before_unlearning",
}


def make_harness(
    attack: AttackSpec,
    data: Dataset,
    poisoned: PoisonedSet,
    test: TestSet,
    compute: Compute,
    measure_curves: Callable[[Network], dict[str, float]],
) -> Harness:
    """The harness of the defenses of one seed. A number that needs a truth that is not known is left out."""

    def score(suspicion: Tensor, isolated: Tensor) -> dict[str, float]:
        truth = poisoned.is_poisoned
        return {} if truth is None else isolation_quality(suspicion, isolated, truth, poisoned.labels)

    def before_unlearning(network: Network) -> dict[str, float]:
        measured = evaluate(network, test, compute)
        return {new: v for name, new in BEFORE_UNLEARNING.items() if (v := measured[name]) is not None}

    def label_accuracy(rows: Tensor, labels: Tensor) -> dict[str, float]:
        true = poisoned.clean_labels
        if true is None or not len(rows):
            return {}
        right = true[rows.to(true.device)] == labels.to(true.device)
        return {"pseudo_label_accuracy": right.double().mean().item()}

    def score_classes(flagged: Tensor) -> dict[str, float]:
        targets = find_true_targets(attack, data, poisoned, test)
        return {} if targets is None else class_quality(flagged, targets)

    def score_inputs(
        score: ScoreInputs, threshold: float, run: StageRun
    ) -> tuple[InputScores, dict[str, float]]:
        scores = score_test_images(test, score, run)
        return scores, input_detection_quality(scores.suspicion, scores.triggered, threshold)

    return Harness(
        curve=measure_curves,
        score=score,
        before_unlearning=before_unlearning,
        label_accuracy=label_accuracy,
        score_classes=score_classes,
        score_inputs=score_inputs,
    )


def find_true_targets(
    attack: AttackSpec, data: Dataset, poisoned: PoisonedSet, test: TestSet
) -> Tensor | None:
    """The true target classes; None where they are not known, in a dataset that came poisoned."""
    if isinstance(attack, Given):
        return find_targets(attack, data)
    assert poisoned.is_poisoned is not None
    if not poisoned.is_poisoned.any() and test.targets is not None:
        # An attack on the training alone: only the triggered test images show what it aims at.
        targets: Tensor = test.targets.unique()
    else:
        targets = poisoned.labels[poisoned.is_poisoned].unique()
    return targets
