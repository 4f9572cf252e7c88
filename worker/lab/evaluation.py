"""All metrics are computed here."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.attacks import Attack, State, apply_trigger
from worker.lab.compute import Compute
from worker.lab.contracts import NonFiniteLossError
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images
from worker.lab.networks import Network


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def predict_logits(network: Network, images: Images, compute: Compute) -> Tensor:
    """Logits float32 ``[N, classes]`` of uint8 ``[N, C, H, W]``, in evaluation mode.

    Raises NonFiniteLossError if one is not finite, since the argmax of NaN would look like a class.
    """
    return _forward(network, network, images, compute)


def predict_classes(network: Network, images: Images, compute: Compute) -> Tensor:
    """The class with the highest logit, int64 ``[N]``. Raises as `predict_logits` does, and takes less memory."""
    return _forward(network, network, images, compute, lambda logits, start: logits.argmax(1))


def extract_features(network: Network, images: Images, compute: Compute) -> Tensor:
    """The pooled last feature maps float32 ``[N, D]`` of uint8 ``[N, C, H, W]``, in evaluation mode.

    Raises NonFiniteLossError if they are not finite.
    """
    return _forward(network, network.features, images, compute)


def extract_activity(network: Network, images: Images, compute: Compute) -> Tensor:
    """What each prunable channel passes on, float32 ``[N, channels]``, of uint8 ``[N, C, H, W]``, in evaluation mode.

    Raises NonFiniteLossError if it is not finite.
    """
    return _forward(network, network.prunable_activity, images, compute)


def extract_with(
    network: Network, call: Callable[[Tensor], Tensor], images: Images, compute: Compute
) -> Tensor:
    """What ``call`` returns for all of uint8 ``[N, C, H, W]``; it runs ``network`` on float images ``[B, C, H, W]``.

    The network is in evaluation mode. Raises NonFiniteLossError if a value is not finite.
    """
    return _forward(network, call, images, compute)


def _forward(
    network: Network,
    call: Callable[[Tensor], Tensor],
    images: Images,
    compute: Compute,
    reduce: Callable[[Tensor, int], Tensor] = lambda output, start: output,
) -> Tensor:
    """The outputs of ``call`` for all images, each batch's reduced by (output, number of its first image)."""
    parts, finite, start = [], [], 0
    with _evaluating(network):
        for batch in images.split(compute.evaluation_batch(images)):
            with compute.autocast():
                output = call(compute.to_input(batch)).float()
            finite.append(torch.isfinite(output).all())
            parts.append(reduce(output, start))
            start += len(batch)
        if not torch.stack(finite).all():
            raise NonFiniteLossError("the network's output is not finite; no metric can be computed from it")
        return torch.cat(parts)


def sample_losses(network: Network, images: Images, labels: Tensor, compute: Compute) -> Tensor:
    """Cross-entropy of each sample ``[N]``."""

    def losses(logits: Tensor, start: int) -> Tensor:
        return F.cross_entropy(logits, labels[start : start + len(logits)], reduction="none")

    return _forward(network, network, images, compute, losses)


def accuracy(network: Network, split: Split, compute: Compute) -> float:
    """Share of samples whose label is predicted."""
    return (predict_classes(network, split.images, compute) == split.labels).double().mean().item()


def chance_warning(clean_accuracy: float, labels: Tensor) -> str | None:
    """A line if an accuracy on test images with these labels is not above what always naming the largest class gives.

    A training that diverged without an infinite number ends there. The margin is two standard errors.
    """
    chance = (labels.bincount().max() / len(labels)).item()
    if clean_accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return None
    return (
        f"clean accuracy is {100 * clean_accuracy:.1f} %, which is not above chance ({100 * chance:.1f} %): the model "
        "has learned nothing, so its other numbers say nothing about the attack or the defense; if the training was "
        "long enough, its learning rate may be too high"
    )


@dataclass
class TestSet:
    """The test images, clean and triggered. Images already of their target class are not triggered.

    ``triggered`` has the true labels; ``targets`` are the classes that the attack aims at, None if they are not known.
    """

    __test__ = False  # tells pytest that this is not a test class

    clean: Split
    triggered: Split | None
    targets: Tensor | None
    origin: Tensor | None
    """Rows of ``clean`` that the triggered images were made from; None if that is not known."""
    cross: Split | None = None
    """Test images changed as cross samples are, and their true labels; None unless the attack has cross samples."""
    one_image: bool = False
    """True if the attack targets a single test image."""

    @classmethod
    def make(
        cls, whole: Split, attack: Attack[Any] | None, state: State, rows: Tensor | None = None
    ) -> "TestSet":
        """From the test set, or from some ``rows`` of it. The image of a single-image attack is always included."""
        test = whole if rows is None else whole.rows(rows)
        if attack is None:
            return cls(test, None, None, torch.empty(0, dtype=torch.int64))
        source = test if attack.has_trigger else whole
        origin = attack.attacked(source, state)
        true = source.labels[origin]
        clean = source.rows(origin)
        triggered = Split(apply_trigger(attack.trigger(state), clean.images), true)
        cross = None
        if attack.spec.cross_share:
            classes = torch.tensor(
                list(attack.spec.cross_classes(attack.facts.classes)), device=test.labels.device
            )
            harmless = test.rows(torch.isin(test.labels, classes).nonzero().flatten())
            cross = Split(attack.cross(state, harmless.images, seed=0), harmless.labels)
        return cls(test, triggered, attack.targets(clean), origin, cross, one_image=not attack.has_trigger)


def evaluate(network: Network, test: TestSet, compute: Compute) -> dict[str, float | None]:
    """Clean accuracy and loss; attack success, robust accuracy and loss towards the target on triggered images.

    The attack's numbers are None without an attack, or without test images outside the target class; those that depend
    on the target are None where it is not known. Attacks with cross samples add ``cross_trigger_accuracy``,
    single-image attacks ``target_image_hit``.
    """
    logits, labels = predict_logits(network, test.clean.images, compute), test.clean.labels
    values: dict[str, float | None] = {
        "clean_accuracy": (logits.argmax(1) == labels).double().mean().item(),
        "clean_loss": F.cross_entropy(logits, labels).item(),
        "attack_success_rate": None,
        "robust_accuracy": None,
        "poisoned_loss": None,
    }
    if test.triggered is not None and len(test.triggered):
        logits = predict_logits(network, test.triggered.images, compute)
        predictions = logits.argmax(1)
        values["robust_accuracy"] = (predictions == test.triggered.labels).double().mean().item()
        if test.targets is not None:
            values["attack_success_rate"] = (predictions == test.targets).double().mean().item()
            values["poisoned_loss"] = F.cross_entropy(logits, test.targets).item()
        if test.one_image:
            values["target_image_hit"] = values["attack_success_rate"]
    if test.cross is not None:
        values["cross_trigger_accuracy"] = accuracy(network, test.cross, compute)
    return values


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive sample scores above a negative one, ties counting half (Mann-Whitney).

    ``scores`` float ``[N]``, ``positive`` bool ``[N]`` with both values present.
    """
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    rank = (last - (counts.double() - 1) / 2)[inverse]  # from 1, ties sharing their mean rank
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    u = rank[positive].sum().item() - n_positive * (n_positive + 1) / 2
    return float(u / (n_positive * n_negative))


def isolation_quality(
    suspicion: Tensor, isolated: Tensor, is_poisoned: Tensor, labels: Tensor | None = None
) -> dict[str, float]:
    """Confusion counts and rates of the isolated rows, and AUROC of the whole ranking, against the true flags.

    ``suspicion`` ``[N]``, higher is more suspicious; ``isolated`` rows ``[K]``, each at most once; ``is_poisoned`` bool
    ``[N]``. With ``labels`` int64 ``[N]``, those of the training set, also precision and AUROC among the samples that
    have a label of some poisoned sample (the target class). A rate that is undefined is left out: on clean data
    everything but the counts and the false positive rate.
    """
    # The true flags are on the device; a defense may return its results on the CPU.
    is_poisoned, isolated = is_poisoned.to(suspicion.device), isolated.to(suspicion.device)
    poisoned, clean = int(is_poisoned.sum()), int((~is_poisoned).sum())
    hits = int(is_poisoned[isolated].sum())
    false = len(isolated) - hits
    values: dict[str, float] = {
        "true_positives": hits,
        "false_positives": false,
        "true_negatives": clean - false,
        "false_negatives": poisoned - hits,
    }
    if clean:
        values["false_positive_rate"] = false / clean
    if poisoned and clean:
        values |= {
            "isolation_precision": hits / max(1, len(isolated)),
            "isolation_recall": hits / poisoned,
            "isolation_auroc": auroc(suspicion, is_poisoned),
        }
    if poisoned and labels is not None:
        labels = labels.to(suspicion.device)
        in_target = torch.isin(labels, labels[is_poisoned].unique())
        # Every poisoned sample has a target's label, so recall within the target class is the recall.
        values["target_class_precision"] = hits / max(1, int(in_target[isolated].sum()))
        if int(in_target.sum()) > poisoned:
            values["target_class_auroc"] = auroc(suspicion[in_target], is_poisoned[in_target])
    return values


def input_detection_quality(suspicion: Tensor, triggered: Tensor, threshold: float) -> dict[str, float]:
    """How well ``suspicion`` ``[N]``, higher is more suspicious, separates triggered inputs (bool ``[N]``) from others.

    The false positive rate is at the method's own ``threshold``, at or above which an input is flagged. With triggered
    inputs also the true positive rate there, the AUROC, and the true positive rates at 1 % and 5 % false positives.
    """
    flagged = suspicion >= threshold
    values = {"input_false_positive_rate": flagged[~triggered].double().mean().item()}
    if triggered.any():
        values |= {
            "input_auroc": auroc(suspicion, triggered),
            "input_tpr_at_1_percent": true_positive_rate_at(suspicion, triggered, 0.01),
            "input_tpr_at_5_percent": true_positive_rate_at(suspicion, triggered, 0.05),
            "input_true_positive_rate": flagged[triggered].double().mean().item(),
        }
    return values


def true_positive_rate_at(scores: Tensor, positive: Tensor, false_positive_rate: float) -> float:
    """The largest share of positive samples that a threshold flags which flags at most that share of the others.

    ``scores`` ``[N]``, ``positive`` bool ``[N]`` with both values present. Nothing is interpolated: samples with equal
    scores are flagged together or not at all.
    """
    negative = scores[~positive].sort(descending=True).values
    allowed = math.floor(false_positive_rate * len(negative))
    if allowed == len(negative):
        return 1.0
    # The threshold must lie above the first negative score that may not be flagged.
    return (scores[positive] > negative[allowed]).double().mean().item()


def class_quality(flagged: Tensor, targets: Tensor) -> dict[str, float]:
    """How a detection of target classes did: ``flagged`` bool ``[classes]``, ``targets`` the true target classes.

    ``target_class_found`` is the share of the targets that are flagged; left out if there is none.
    """
    flagged, targets = flagged.cpu(), targets.cpu()
    right = int(flagged[targets].sum())
    values: dict[str, float] = {"wrong_classes_flagged": int(flagged.sum()) - right}
    return values | ({"target_class_found": right / len(targets)} if len(targets) else {})
