"""DBD, decoupling the training process (Huang et al. 2022).

Features are trained without labels, so that a poisoned image lies with the images that look like it and not with those
of its label. A last layer is trained on these features. The half of the samples that it fits best keeps its labels;
of the others, among which the poison is, the images alone are learned from.
"""

from dataclasses import replace

from torch import Tensor

from app.specs.defenses.dbd import Dbd
from worker.lab.data.augment import Augment
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.self_supervised import Views, contrastive_objective, train_features
from worker.lab.defenses.semi_supervised import (
    lowest,
    symmetric_cross_entropy,
    symmetric_losses,
    train_mixmatch,
)
from worker.lab.defenses.signs import unit_ranks
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Schedule, adam, constant, cosine


def run(spec: Dbd, lab: TrainingDefense) -> Network:
    """Features, last layer, and everything from partly labeled data."""
    features = lab.stage("features", lambda stage: learn_features(spec, lab, stage))
    head = lab.stage("head", lambda stage: train_head(spec, lab, stage, features))
    trained = lab.stage("training", lambda stage: train_semi_supervised(spec, lab, stage, head))
    return _load(lab, trained)


def learn_features(spec: Dbd, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """SimCLR on all images (section 4.2; SCLBD/DBD, simclr.py).

    The authors' loss has the first view as its only anchor; here both are anchors, as in SimCLR, with the same mean."""
    recipe = replace(
        lab.recipe,
        epochs=spec.feature_epochs,
        batch_size=spec.feature_batch_size,
        learning_rate=spec.feature_learning_rate,
        weight_decay=spec.feature_weight_decay,
        schedule=part_of_cosine(spec.feature_epochs / (spec.feature_schedule_epochs or spec.feature_epochs)),
        optimizer=plain_sgd,
        augment=Augment(),
        objective=contrastive_objective(
            lab.compute, Views(lab.recipe.augment.flip, blur=True), spec.temperature
        ),
        memory={},
    )
    return stage.finish(train_features(lab, stage, lab.new_network("dbd"), recipe, batch_norm=True))


def train_head(spec: Dbd, lab: TrainingDefense, stage: StageRun, features: Outcome) -> Outcome:
    """The last layer alone, with symmetric cross-entropy (section 4.3; utils/trainer/simclr.py, poison_linear_train).

    As there, the network is in training mode, so that its statistics become those of the weaker augmentation.
    """
    network = _load(lab, features)
    network.requires_grad_(False)
    network.head.requires_grad_(True)

    def objective(network: Network, batch: Batch) -> Tensor:
        return symmetric_cross_entropy(network(batch.x), batch.labels).mean()

    recipe = replace(
        lab.recipe,
        epochs=spec.head_epochs,
        learning_rate=spec.mixmatch_learning_rate,  # one optimizer there
        schedule=constant,
        optimizer=adam,
        objective=objective,
        memory={},
    )
    lab.fit(stage, network, recipe)
    return stage.finish(copy_state(network))


def train_semi_supervised(spec: Dbd, lab: TrainingDefense, stage: StageRun, head: Outcome) -> Outcome:
    """MixMatch; the samples of the lowest loss keep their labels (section 4.4; mixmatch_finetune.py)."""
    network = _load(lab, head)

    def choose_labeled(network: Network, epoch: int) -> Tensor:
        losses = symmetric_losses(lab, network, lab.split)
        labeled = lowest(losses, int(spec.labeled_ratio * len(losses)))
        lab.record_isolation(
            stage,
            epoch,
            unit_ranks(losses),
            (~labeled).nonzero().flatten(),
            final=epoch == spec.mixmatch_epochs,
        )
        return labeled

    train_mixmatch(lab, stage, network, lab.split, spec, spec.mixmatch_epochs, choose_labeled)
    return stage.finish(copy_state(network))


def part_of_cosine(part: float) -> Schedule:
    """The first ``part`` of a cosine schedule, stretched over the training."""
    return lambda share: cosine(share * part)


def _load(lab: TrainingDefense, outcome: Outcome) -> Network:
    return load_state(lab.new_network("dbd"), outcome.tensors, lab.compute.device)
