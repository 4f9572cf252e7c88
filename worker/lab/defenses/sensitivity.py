"""Sample distinguishment by the FCT metric (Chen et al. 2022, section 4.1), which D-ST and D-BR begin with.

FCT is the feature consistency towards transformations: a rotation and a shift move the content of an image, and its
trigger, and a model that goes by the trigger gives other features when it does not find it where it was.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.sensitivity import SensitivityDefense
from worker.lab.compute import EVALUATION_BATCH, seeded_generator
from worker.lab.data.augment import Augment
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.semi_supervised import lowest
from worker.lab.defenses.signs import unit_ranks
from worker.lab.evaluation import extract_features
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, Recipe, constant

LARGEST_SHIFT = 0.2  # of the image's side (utils/dataloader_bd.py, get_transform, transform3)


def separate_samples(spec: SensitivityDefense, lab: TrainingDefense) -> Outcome:
    """Both stages. Leaves ``sensitivity`` ``[N]`` and bool ``[N]`` ``clean`` and ``poisoned``."""
    biased = lab.stage("biased", lambda stage: train_biased(spec, lab, stage))
    return lab.stage("separation", lambda stage: measure_samples(spec, lab, stage, biased))


def train_biased(spec: SensitivityDefense, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Ordinary training without augmentation (train_attack_noTrans.py)."""
    network = lab.new_network("biased")
    lab.fit(stage, network, replace(_recipe(spec, lab), epochs=spec.biased_epochs))
    return stage.finish(copy_state(network))


def measure_samples(
    spec: SensitivityDefense, lab: TrainingDefense, stage: StageRun, biased: Outcome
) -> Outcome:
    """Move the classes apart, and rank the samples by how much a transformation changes their features."""
    network = load_state(lab.new_network("biased"), biased.tensors, lab.compute.device)
    recipe = replace(
        _recipe(spec, lab), epochs=spec.tuning_epochs, objective=spread_objective(lab.facts.classes)
    )
    lab.fit(stage, network, recipe)
    scores = transformation_sensitivity(lab, network, stage.planned.stream)
    size = len(scores)
    # calculate_gamma.py: the thresholds are order statistics.
    clean = lowest(scores, int(spec.trusted_ratio * size))
    poisoned = lowest(-scores, int(spec.suspected_ratio * size))
    ranks = unit_ranks(scores)
    lab.record_isolation(stage, max(1, spec.tuning_epochs), ranks, poisoned.nonzero().flatten())
    return stage.finish({"sensitivity": scores, "clean": clean, "poisoned": poisoned})


def spread_objective(classes: int) -> Objective:
    """The mean cosine of the centers of different classes in a batch, the diagonal counted as zero
    (finetune_attack_noTrans.py, train_epoch, "intra-class loss")."""

    def objective(network: Network, batch: Batch) -> Tensor:
        features = network.features(batch.x).float()
        members = F.one_hot(batch.labels, classes).float()
        # A class that is not in the batch has a center of zero, which adds nothing.
        centers = F.normalize(members.T @ features, dim=1)
        cosines = centers @ centers.T
        return (cosines.sum() - cosines.trace()) / members.amax(0).sum() ** 2

    return objective


def transformation_sensitivity(lab: TrainingDefense, network: Network, stream: str) -> Tensor:
    """FCT of every training sample ``[N]``: the mean square change of its features by a random rotation and shift
    (calculate_consistency.py)."""
    size, device = len(lab.labels), lab.compute.device
    generator = seeded_generator(device, "transformation", stream)
    turns = torch.rand(size, device=device, generator=generator) - 0.5
    shifts = LARGEST_SHIFT * (2 * torch.rand(size, 2, device=device, generator=generator) - 1)
    parts = []
    for rows in torch.arange(size, device=device).split(EVALUATION_BATCH):
        pixels = lab.images[rows]
        moved = turn_and_shift(pixels, turns[rows], shifts[rows])
        change = extract_features(network, pixels, lab.compute) - extract_features(
            network, moved, lab.compute
        )
        parts.append(change.square().mean(1))
    return torch.cat(parts)


def turn_and_shift(images: Tensor, turns: Tensor, shifts: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` rotated by ``turns`` ``[B]`` of a circle, then moved by ``shifts`` ``[B, 2]``, shares of
    width and height, in whole pixels; each pixel is copied from the nearest one, and what comes from outside is
    black."""
    height, width = images.shape[-2:]
    moved = torch.stack(
        [2 * (shifts[:, i] * side).round() / side for i, side in enumerate((width, height))], 1
    )
    cosine, sine = (f(2 * math.pi * turns) for f in (torch.cos, torch.sin))
    # From the coordinates of the result, in [-1, 1], to those of the image.
    matrix = torch.stack(
        [
            torch.stack([cosine, sine * height / width], 1),
            torch.stack([-sine * width / height, cosine], 1),
        ],
        1,
    )
    grid = F.affine_grid(
        torch.cat([matrix, -(matrix @ moved[:, :, None])], 2), list(images.shape), align_corners=False
    )
    sampled = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled.to(images.dtype)


def _recipe(spec: SensitivityDefense, lab: TrainingDefense) -> Recipe:
    return replace(
        lab.recipe,
        batch_size=min(128, len(lab.labels)),  # utils/args.py
        learning_rate=spec.biased_learning_rate,
        weight_decay=5e-4,
        schedule=constant,
        optimizer=plain_sgd,
        augment=Augment(),
        memory={},
    )
