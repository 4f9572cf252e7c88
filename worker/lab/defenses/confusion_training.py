"""Confusion training (Qi et al. 2023), from the authors' code, Unispac/Fight-Poison-With-Poison (files and lines in
brackets; [ct] is ct_cleanser.py, [cf] confusion_training.py).

A model is trained on the samples, and then on them and, with far more weight, on clean images with wrong labels that
change from step to step. It unlearns what clean images have in common with their labels; the samples whose label it
still predicts have it by other means, a trigger. In six rounds the samples of the lowest loss become fewer and their
poisoned share larger. After the last round the samples that keep their label are flagged, in classes where their
features form a cluster of their own.

Differences: clean images of a step are drawn independently, where the code goes through them in order. And what is
added to covariances against singularity is added to their diagonal, where the code adds it to all entries [cf:190].
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.confusion import PASSES, ROUNDS, ConfusionTraining
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images, join
from worker.lab.defenses.base import DetectionDefense, copy_state
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.defenses.repair import divide_steps, load_network, plain_sgd
from worker.lab.defenses.semi_supervised import lowest
from worker.lab.defenses.spectre import covariance_of, principal_components
from worker.lab.evaluation import extract_features, predict_classes, sample_losses
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Recipe, constant, train

KEPT = (1 / 2, 1 / 5, 1 / 25, 1 / 50, 1 / 100)
"""Shares of all samples that each round but the last keeps [config.py]."""
WEIGHTS = (20, 20, 20, 30, 30, 15)
"""lambda of each round: that of wrong labels beside one of the samples [config.py]."""
MOMENTA, WEIGHT_DECAY = (0.9, 0.7), 1e-4
"""Of the training and of the steps on wrong labels [config.py; cf:267]."""
INTERVAL = 2  # every second step is on wrong labels alone [config.py, batch_factors]
MIN_KEPT_OF_CLASS = (50, 50, 50, 50, 100)
"""Each round keeps at least one in this many samples of every class [cf:528]."""
RARE = 0.001  # added to the share of a class [ct:132]
RIDGE = 0.001  # [cf:190]


def run(spec: ConfusionTraining, lab: DetectionDefense) -> Network:
    """Six rounds of training, confusing and keeping fewer samples; then flag what keeps its label, and retrain."""
    rows = torch.arange(len(lab.labels), device=lab.labels.device)
    trained = confused = Outcome({})
    for n in range(1, ROUNDS + 1):
        trained, confused = run_round(spec, lab, n, trained, rows)
        if n < ROUNDS:
            losses = confused.tensors["losses"].to(lab.labels.device)
            rows = keep_samples(losses, lab.labels, KEPT[n - 1], MIN_KEPT_OF_CLASS[n - 1])
    detection = lab.stage("detection", lambda stage: detect(spec, lab, stage, confused))
    return retrain_without_flagged(lab, spec.then, detection)


def run_round(
    spec: ConfusionTraining, lab: DetectionDefense, n: int, before: Outcome, rows: Tensor
) -> tuple[Outcome, Outcome]:
    """Round ``n`` on ``rows``, with the network that was trained in the round before; returns the new one, and what
    confusing it leaves."""
    trained = lab.stage(f"pretraining_{n}", lambda stage: pretrain(spec, lab, stage, n, before, rows))
    return trained, lab.stage(f"confusion_{n}", lambda stage: confuse(spec, lab, stage, n, trained, rows))


def pretrain(
    spec: ConfusionTraining, lab: DetectionDefense, stage: StageRun, n: int, before: Outcome, rows: Tensor
) -> Outcome:
    """Train on ``rows``, in the last round also on the clean images with the class after the true one [ct:138]."""
    assert lab.clean is not None
    network = load_network(lab, before) if n > 1 else lab.new_network("confusion")
    clean, size = lab.clean.fit, len(lab.labels)
    split = Split(
        join(lab.images, clean.images), torch.cat([lab.labels, (clean.labels + 1) % lab.facts.classes])
    )
    if n == ROUNDS:
        rows = torch.cat([rows, torch.arange(size, len(split), device=rows.device)])
    recipe = replace(_recipe(spec, lab, len(rows)), epochs=spec.epochs_of(n), momentum=MOMENTA[0])
    train(stage, network, split.images, split.labels, recipe, rows=rows)
    return stage.finish(copy_state(network))


def confuse(
    spec: ConfusionTraining, lab: DetectionDefense, stage: StageRun, n: int, trained: Outcome, rows: Tensor
) -> Outcome:
    """Train on ``rows`` and on wrong labels. Leaves the network and the loss of every sample ``[N]``."""
    assert lab.clean is not None
    network, clean = load_network(lab, trained), lab.clean.images
    weights = 1 / class_frequencies(lab.labels[rows], lab.facts.classes)
    confusion = Confusion(
        lab,
        clean,
        predict_classes(lab.victim, clean, lab.compute),
        torch.ones_like(weights) if n == ROUNDS else weights,  # [ct:127]
        WEIGHTS[n - 1],
        spec.batch_size,
    )
    recipe = replace(
        _recipe(spec, lab, len(rows)),
        learning_rate=spec.first_confusion_learning_rate if n <= 3 else spec.last_confusion_learning_rate,
        momentum=MOMENTA[1],
        objective=confusion,
    )
    steps = spec.confusion_steps or math.ceil(PASSES * len(clean) / spec.batch_size)
    batches = math.ceil(len(rows) / recipe.batch_size)
    recipe.epochs, repeats = divide_steps(steps if n <= 4 else max(1, steps // 3), batches)

    def begin_epoch(epoch: int) -> Tensor:
        confusion.step = (epoch - 1) * batches * repeats
        return rows.repeat(repeats)

    train(stage, network, lab.images, lab.labels, recipe, rows=begin_epoch)
    losses = sample_losses(network, lab.images, lab.labels, lab.compute)
    return stage.finish(copy_state(network) | {"losses": losses})


def _recipe(spec: ConfusionTraining, lab: DetectionDefense, samples: int) -> Recipe:
    return replace(
        lab.recipe,
        batch_size=min(spec.batch_size, samples),
        learning_rate=spec.learning_rate,
        weight_decay=WEIGHT_DECAY,
        schedule=constant,
        optimizer=plain_sgd,
        augment=NO_AUGMENT,
        memory={},
    )


@dataclass
class Confusion:
    """The objective of the steps on wrong labels [cf:353-413]."""

    lab: DetectionDefense
    clean: Images
    classes: Tensor
    """What the victim predicts for the clean images ``[M]``."""
    class_weights: Tensor
    """Of the samples of each class ``[K]``."""
    weight: float
    """lambda: wrong labels have the weight lambda - 1 beside 1 of the samples."""
    batch_size: int
    step: int = 0

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        order = torch.randperm(len(self.clean), device=batch.x.device, generator=batch.generator)
        rows = order[: self.batch_size]
        wrong = wrong_labels(self.classes[rows], self.step, self.lab.facts.classes)
        clean_x = self.lab.compute.to_input(self.clean[rows])
        is_alone = self.step % INTERVAL != 0
        self.step += 1
        if is_alone:
            return F.cross_entropy(network(clean_x).float(), wrong)
        logits = network(torch.cat([clean_x, batch.x])).float()
        confusion = F.cross_entropy(logits[: len(rows)], wrong)
        # With weights torch divides by their sum, as the code does.
        inspection = F.cross_entropy(logits[len(rows) :], batch.labels, self.class_weights)
        return ((self.weight - 1) * confusion + inspection) / self.weight


def wrong_labels(labels: Tensor, step: int, classes: int) -> Tensor:
    """``labels`` moved by 1 to ``classes`` - 1, in turn from step to step [cf:362]."""
    return (labels + 1 + step % (classes - 1)) % classes


def class_frequencies(labels: Tensor, classes: int) -> Tensor:
    """Square roots of the shares of the classes among ``labels``, rare ones raised ``[K]`` [ct:131]."""
    return (labels.bincount(minlength=classes) / len(labels) + RARE).sqrt()


def keep_samples(losses: Tensor, labels: Tensor, share: float, one_in: int) -> Tensor:
    """Rows of the lowest losses, and of each class at least one in ``one_in`` samples [cf:510-541]."""
    kept = lowest(losses, max(2, int(share * len(losses))))  # batch normalization cannot train on one
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        kept[rows[lowest(losses[rows], len(rows) // one_in)]] = True
    return kept.nonzero().flatten()


def log_density(points: Tensor, cluster: Tensor) -> Tensor:
    """Logarithms ``[n]`` of the normal density with mean and covariance of ``cluster`` ``[m, D]`` at ``[n, D]``."""
    covariance = covariance_of(cluster) + RIDGE * torch.eye(points.shape[1], dtype=points.dtype)
    normal = torch.distributions.MultivariateNormal(cluster.mean(0), covariance, validate_args=False)
    densities: Tensor = normal.log_prob(points)
    return densities


def likelihood_ratio(points: Tensor, isolated: Tensor) -> float:
    """How much more likely ``points`` ``[n, 2]`` are as two clusters than as that of the others, per sample; 1 if a
    cluster has less than two points [cf:178-206]."""
    if min(int(isolated.sum()), int((~isolated).sum())) < 2:
        return 1.0
    others = log_density(points, points[~isolated])
    gain = (log_density(points[isolated], points[isolated]) - others[isolated]).sum() / len(points)
    return math.exp(min(gain.item(), 80.0))


def detect(spec: ConfusionTraining, lab: DetectionDefense, stage: StageRun, confused: Outcome) -> Outcome:
    """Flag the samples whose label the confused model predicts, in suspicious classes [cf:208-232]."""
    network_tensors = {name: tensor for name, tensor in confused.tensors.items() if name != "losses"}
    network = load_network(lab, Outcome(network_tensors))
    isolated = predict_classes(network, lab.images, lab.compute) == lab.labels
    features = extract_features(network, lab.images, lab.compute).cpu().double()
    labels, ratios = lab.labels.cpu(), torch.ones(lab.facts.classes, dtype=torch.float64)
    for label in labels.unique():
        rows = labels == label
        if int(rows.sum()) > 2:
            points = principal_components(features[rows], 2)
            ratios[label] = likelihood_ratio(points, isolated.cpu()[rows])
    suspicious = (ratios > spec.threshold) | ((ratios == ratios.max()) & (ratios > spec.lower_threshold))
    by_class = {"class_likelihood_ratio": ratios.float(), "class_flagged": suspicious}
    flagged = isolated & suspicious.to(isolated.device)[lab.labels]
    losses = confused.tensors["losses"].to(isolated.device)
    return finish_detection(lab, stage, -losses, flagged, by_class)
