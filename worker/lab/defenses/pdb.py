"""PDB, the proactive defensive backdoor (Wei et al. 2024).

The defender poisons the training as well: clean images with a stamp get the class after the true one. The stamp is
more conspicuous than the attacker's trigger can be, so that on a stamped image the model follows it. At test time
every image is stamped, and the class of the answer is shifted back.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.pdb import Pdb
from worker.lab.compute import Compute
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import join
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.sensitivity import turn_and_shift
from worker.lab.networks import Network
from worker.lab.networks.trigger_input import TriggerInput
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, cosine

DIMMED, TURNED = 0.2, 0.5  # shares of the stamped images (defense/pdb.py, trans_defensive)
LEAST_BRIGHTNESS, LARGEST_TURN = 0.5, 10 / 360


def run(spec: Pdb, lab: TrainingDefense) -> Network:
    """Train with the stamp."""
    trained = lab.stage("training", lambda stage: train_with_stamp(spec, lab, stage))
    return load_state(_new_network(spec, lab), trained.tensors, lab.compute.device)


def train_with_stamp(spec: Pdb, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Train on the poisoned set and, several times an epoch, on the stamped clean images.

    The authors give stamped images the shifted label, and shift the answers back (defense/pdb.py, bd_warp). Here the
    images without stamp have their label shifted back instead: the same with the last layer's classes renamed, but the
    stored network needs no step after the last layer.
    """
    assert lab.clean is not None
    clean, size = lab.clean.fit, len(lab.labels)
    shifted_back = (lab.labels - spec.shift) % lab.facts.classes
    split = Split(join(lab.images, clean.images), torch.cat([shifted_back, clean.labels]))
    rows = torch.arange(len(split), device=lab.labels.device)
    network = _new_network(spec, lab)
    recipe = replace(
        lab.recipe,
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        schedule=cosine,
        optimizer=plain_sgd,
        augment=Augment(),
        objective=stamp_objective(lab.compute, size, lab.recipe.augment),
        memory={},
    )
    lab.fit_on(
        stage, network, split, recipe, rows=torch.cat([rows[:size], rows[size:].repeat(spec.repetitions)])
    )
    return stage.finish(copy_state(network))


def stamp_objective(compute: Compute, size: int, augment: Augment) -> Objective:
    """Cross-entropy; images from row ``size`` on are stamped, and then changed more than the others.

    As in the authors' code, augmentation comes after the stamp and moves it.
    """

    def objective(network: Network, batch: Batch) -> Tensor:
        assert isinstance(network, TriggerInput)
        with torch.no_grad(), compute.full_precision():
            stamped = network.add_trigger(batch.x)
            stamped = turn_and_dim(stamped, batch.generator)
            x = torch.where((batch.rows >= size)[:, None, None, None], stamped, batch.x)
            x = augment(x, batch.generator)
        return F.cross_entropy(network.network(x).float(), batch.labels)

    return objective


def turn_and_dim(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``[B, C, H, W]``, one in five of them darker and one in two rotated by up to ten degrees."""

    def draw() -> Tensor:
        return torch.rand(len(x), device=x.device, generator=generator)

    brightness = torch.where(draw() < DIMMED, LEAST_BRIGHTNESS + (1 - LEAST_BRIGHTNESS) * draw(), 1.0)
    turns = torch.where(draw() < TURNED, LARGEST_TURN * (2 * draw() - 1), 0.0)
    return turn_and_shift(x * brightness[:, None, None, None], turns, torch.zeros(len(x), 2, device=x.device))


def _new_network(spec: Pdb, lab: TrainingDefense) -> TriggerInput:
    side = spec.stamp_side(lab.facts)
    mask = torch.zeros(1, 1, lab.facts.height, lab.facts.width)
    mask[:, :, :side, :side] = 1
    return TriggerInput(lab.new_network("pdb"), mask, mask * spec.stamp_value).to(lab.compute.device)
