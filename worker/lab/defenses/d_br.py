"""D-BR, backdoor removal (Chen et al. 2022, section 4.3).

A model is trained on everything. It then unlearns the samples that seem poisoned by gradient ascent, and relearns those
that seem clean, in turn.
"""

import math
from dataclasses import replace

from torch import Tensor

from app.specs.defenses.sensitivity import DBr
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.sensitivity import separate_samples
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Loss, constant

BATCH = 128  # images (utils/args.py)


def run(spec: DBr, lab: TrainingDefense) -> Network:
    """Separate the samples, train, unlearn and relearn."""
    separated = separate_samples(spec, lab)
    backdoored = lab.stage("training", lambda stage: train_backdoored(lab, stage))
    trained = lab.stage(
        "unlearning", lambda stage: unlearn_and_relearn(spec, lab, stage, separated, backdoored)
    )
    return load_state(lab.new_network("d_br"), trained.tensors, lab.compute.device)


def train_backdoored(lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Ordinary training by the experiment's recipe (train_attack_withTrans.py)."""
    network = lab.new_network("d_br")
    lab.fit(stage, network, replace(lab.recipe, memory={}))
    return stage.finish(copy_state(network))


def unlearn_and_relearn(
    spec: DBr, lab: TrainingDefense, stage: StageRun, separated: Outcome, backdoored: Outcome
) -> Outcome:
    """Gradient ascent in odd epochs and descent in even ones, with one optimizer (unlearn_relearn.py, main)."""
    network = load_state(lab.new_network("d_br"), backdoored.tensors, lab.compute.device)
    lab.record_before_unlearning(stage, 1, network)
    clean, poisoned = (separated.tensors[name].to(lab.labels.device) for name in ("clean", "poisoned"))
    least = spec.least_steps * BATCH
    recipe = replace(
        lab.recipe,
        epochs=2 * spec.rounds,
        batch_size=BATCH,
        learning_rate=spec.unlearning_learning_rate,
        weight_decay=5e-4,
        schedule=constant,
        optimizer=plain_sgd,
        loss=ascend_on(poisoned),
        memory={},
    )
    lab.fit(stage, network, recipe, rows=lambda epoch: rows_of_epoch(epoch, clean, poisoned, least))
    return stage.finish(copy_state(network))


def rows_of_epoch(epoch: int, clean: Tensor, poisoned: Tensor, least: int = 0) -> Tensor:
    """The rows to unlearn in odd epochs, and to relearn in even ones, repeated until there are at least ``least``; both
    masks are bool ``[N]``."""
    rows = (poisoned if epoch % 2 else clean).nonzero().flatten()
    return rows.repeat(max(1, math.ceil(least / len(rows))))


def ascend_on(poisoned: Tensor) -> Loss:
    """The mean loss, with the opposite sign for ``poisoned`` (bool ``[N]``)."""
    sign = 1.0 - 2.0 * poisoned.float()
    return lambda losses, rows: (sign[rows] * losses).mean()
