"""CBD, the causality-inspired backdoor defense (Zhang et al. 2023), as the authors' code runs it.

A trigger is learned in a few epochs, so a model that is trained no longer, f_B, has learned the backdoor and little
else. The clean model f_C is trained on everything, with weights that are small where f_B already has a low loss.
The paper also penalizes the mutual information of both models' features; zaixizhang/CBD has that behind the option
``disentangle``, which is off (config.py:27), and it is left out here.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.cbd import Cbd
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, Recipe, constant, step_down


def run(spec: Cbd, lab: TrainingDefense) -> Network:
    """Train the backdoored model, then the clean one."""
    biased = lab.stage("biased", lambda stage: train_biased(spec, lab, stage))
    trained = lab.stage("training", lambda stage: train_clean(spec, lab, stage, biased))
    return load_state(lab.new_network("cbd"), trained.tensors, lab.compute.device)


def train_biased(spec: Cbd, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """f_B: ordinary training for a few epochs (train.py:85, train_step_backdoor). Its optimizer keeps the initial
    rate, since the schedule there is applied to the clean model's."""
    network = lab.new_network("cbd biased")
    recipe = replace(_recipe(spec, lab), epochs=spec.biased_epochs, schedule=constant)
    lab.fit(stage, network, recipe)
    return stage.finish(copy_state(network))


def train_clean(spec: Cbd, lab: TrainingDefense, stage: StageRun, biased: Outcome) -> Outcome:
    """f_C: weighted training (train.py:14, train_step_clean)."""
    network = lab.new_network("cbd")
    confounded = load_state(lab.new_network("cbd biased"), biased.tensors, lab.compute.device).eval()
    recipe = replace(
        _recipe(spec, lab),
        schedule=step_down(0.2, 0.7),  # epochs 20 and 70 of 100 (train.py:232, learning_rate)
        objective=weighted_objective(confounded),
    )
    lab.fit(stage, network, recipe)
    return stage.finish(copy_state(network))


def weighted_objective(biased: Network) -> Objective:
    """Mean of ``w l_C`` over the batch, ``l_C`` being the cross-entropies of the trained network; see
    `sample_weights`."""

    def objective(network: Network, batch: Batch) -> Tensor:
        losses = F.cross_entropy(network(batch.x).float(), batch.labels, reduction="none")
        with torch.no_grad():
            of_biased = F.cross_entropy(biased(batch.x).float(), batch.labels, reduction="none")
        return (sample_weights(of_biased, losses.detach()) * losses).mean()

    return objective


def sample_weights(biased: Tensor, clean: Tensor) -> Tensor:
    """``l_B / (l_C + l_B)`` of the cross-entropies of both models ``[B]``, scaled to a mean of 1 in the batch
    (train.py:61)."""
    weights = biased / (clean + biased + 1e-8)
    # Where every loss of f_B rounds to zero the batch has no weight to share; the authors' quotient is NaN there.
    return weights * len(weights) / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _recipe(spec: Cbd, lab: TrainingDefense) -> Recipe:
    return replace(
        lab.recipe,
        epochs=spec.epochs,
        learning_rate=spec.learning_rate,
        batch_size=spec.batch_size,
        weight_decay=spec.weight_decay,
        memory={},
    )
