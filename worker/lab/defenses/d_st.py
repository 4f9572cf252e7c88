"""D-ST, secure training (Chen et al. 2022, section 4.2).

After the sample distinguishment, features are trained contrastively: a sample that seems clean is to be like those of
its label, any other sample like its own other view only. The last layer then learns the samples that seem clean, and
slightly unlearns those that seem poisoned.
"""

from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.sensitivity import DSt
from worker.lab.data.augment import Augment
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.self_supervised import (
    ChoosePositives,
    Views,
    contrastive_objective,
    train_features,
)
from worker.lab.defenses.sensitivity import separate_samples
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Schedule, cosine

BASE_TEMPERATURE = 0.07  # by which the loss is divided beside its temperature (ST/losses.py)
WARMUP = 10  # epochs (ST/train_extractor.py, parse_option)
LEAST_RATE = 1e-3  # of the peak (ST/util.py, adjust_learning_rate)
FIRST_RATE = 0.01


def run(spec: DSt, lab: TrainingDefense) -> Network:
    """Separate the samples, train features, and the last layer."""
    separated = separate_samples(spec, lab)
    features = lab.stage("features", lambda stage: learn_features(spec, lab, stage, separated))
    trained = lab.stage("head", lambda stage: train_head(spec, lab, stage, separated, features))
    return load_state(lab.new_network("d_st"), trained.tensors, lab.compute.device)


def learn_features(spec: DSt, lab: TrainingDefense, stage: StageRun, separated: Outcome) -> Outcome:
    """Semi-supervised contrastive training (ST/train_extractor.py)."""
    recipe = replace(
        lab.recipe,
        epochs=spec.feature_epochs,
        batch_size=spec.feature_batch_size,
        learning_rate=spec.feature_learning_rate,
        weight_decay=spec.feature_weight_decay,
        schedule=warm_cosine(spec.feature_epochs, spec.feature_learning_rate),
        optimizer=plain_sgd,
        augment=Augment(),
        objective=contrastive_objective(
            lab.compute,
            Views(lab.recipe.augment.flip, blur=False),
            spec.temperature,
            positives_of(separated.tensors["clean"].to(lab.labels.device)),
            scale=spec.temperature / BASE_TEMPERATURE,
        ),
        memory={},
    )
    return stage.finish(train_features(lab, stage, lab.new_network("d_st"), recipe, batch_norm=False))


def positives_of(clean: Tensor) -> ChoosePositives:
    """Positives of a sample in ``clean`` (bool ``[N]``): all of its label; of another: itself (ST/losses.py,
    SupConLoss_Consistency)."""

    def choose(batch: Batch) -> Tensor:
        same = batch.labels[:, None] == batch.labels
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        return torch.where(clean[batch.rows][:, None], same, itself)

    return choose


def train_head(
    spec: DSt, lab: TrainingDefense, stage: StageRun, separated: Outcome, features: Outcome
) -> Outcome:
    """The last layer, with the mixed cross-entropy (ST/train_classifier.py), on the samples that were separated."""
    network = load_state(lab.new_network("d_st"), features.tensors, lab.compute.device)
    clean, poisoned = (separated.tensors[name].to(lab.labels.device) for name in ("clean", "poisoned"))
    views = Views(lab.recipe.augment.flip, blur=False)

    def objective(network: Network, batch: Batch) -> Tensor:
        with torch.no_grad(), lab.compute.full_precision():
            x = views(batch.x, batch.generator)
        losses = torch.nn.functional.cross_entropy(network(x).float(), batch.labels, reduction="none")
        learned, unlearned = (
            (losses * mask[batch.rows]).sum() / mask[batch.rows].sum().clamp(min=1)
            for mask in (clean, poisoned)
        )
        return learned - spec.poison_weight * unlearned

    recipe = replace(
        lab.recipe,
        epochs=spec.head_epochs,
        batch_size=spec.feature_batch_size,
        learning_rate=spec.head_learning_rate,
        weight_decay=0.0,
        schedule=lambda share: (
            (
                FIRST_RATE + share * (spec.head_learning_rate - FIRST_RATE)
            )  # the warm-up is as long as the training
            / spec.head_learning_rate
        ),
        optimizer=plain_sgd,
        augment=Augment(),
        objective=objective,
        head_only=True,
        memory={},
    )
    lab.fit(stage, network, recipe, rows=(clean | poisoned).nonzero().flatten())
    return stage.finish(copy_state(network))


def warm_cosine(epochs: int, rate: float) -> Schedule:
    """From 0.01 linearly to the cosine schedule in ten epochs, a tenth of the training at most, and down to a
    thousandth of ``rate`` (ST/util.py, warmup_learning_rate)."""

    def decayed(share: float) -> float:
        return LEAST_RATE + (1 - LEAST_RATE) * cosine(share)

    warmup = min(WARMUP / epochs, 0.1)

    def schedule(share: float) -> float:
        if share >= warmup:
            return decayed(share)
        first = FIRST_RATE / rate
        return first + share / warmup * (decayed(warmup) - first)

    return schedule
