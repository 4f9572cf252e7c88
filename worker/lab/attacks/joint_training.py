"""Training of a victim by an attacker who poisons each batch as it is drawn, as WaNet's and BppAttack's authors do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.attacks.base import Attack, AttackLab, Prepared, State
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, train


def train_jointly(
    attack: Attack[Any],
    lab: AttackLab,
    state: State,
    cross: Callable[[Tensor, torch.Generator], Tensor],
    count_cross: Callable[[int, int], int],
) -> Prepared:
    """The trigger's ``state`` and, if the spec has ``joint_epochs``, the metrics of the model trained so long.

    The first images of every batch get the trigger and its label, the next ones a ``cross`` trigger, and all are
    augmented afterwards. ``count_cross`` is the number of the latter, of the size of a batch and the number of
    triggered images.
    """
    if not attack.spec.joint_epochs:
        return Prepared(state)
    trigger = attack.trigger(state)

    def objective(network: Network, batch: Batch) -> Tensor:
        images, labels = lab.train.images[batch.rows], batch.labels.clone()
        triggered = int(len(images) * attack.spec.poisoning_rate)
        crossed = triggered + count_cross(len(images), triggered)
        mixed = torch.cat(
            [
                trigger(images[:triggered]),
                cross(images[triggered:crossed], batch.generator),
                images[crossed:],
            ]
        )
        labels[:triggered] = attack.target(labels[:triggered])
        x = lab.compute.to_input(lab.recipe.augment(mixed, batch.generator))
        return F.cross_entropy(network(x).float(), labels)

    def compute(run: StageRun) -> Outcome:
        network = lab.new_network("joint")
        recipe = replace(
            lab.recipe, epochs=attack.spec.joint_epochs, augment=NO_AUGMENT, objective=objective, memory={}
        )
        train(
            run,
            network,
            lab.train.images,
            lab.train.labels,
            recipe,
            after_epoch=lambda network, epoch: lab.measure(network, state),
        )
        network.eval()
        return run.finish(dict(network.state_dict()), model=lab.measure_fully(network, state))

    measured = lab.stage("joint", compute).facts["model"]
    return Prepared(state, metrics={f"attacker_{name}": value for name, value in measured.items()})
