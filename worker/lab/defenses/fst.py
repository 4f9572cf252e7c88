"""Feature shift tuning (Min et al. 2023).

The last layer starts from random weights, and the whole network is fine-tuned with ``L + alpha <w, w0>``, where ``w``
are the weights of the last layer and ``w0`` the victim's, under the constraint that ``w`` has the norm of ``w0``
(algorithm 1). The inner product drives the layer away from the victim's, so that the features shift as well.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.tuning import Fst
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.heads import FixedNormSgd, renew_head
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective


def shift_objective(alpha: float, original: Tensor) -> Objective:
    """Cross-entropy plus ``alpha`` times the inner product of the last layer's weights and the ``original`` ones."""

    def objective(network: Network, batch: Batch) -> Tensor:
        loss = F.cross_entropy(network(batch.x).float(), batch.labels)
        return loss + alpha * (network.head.weight * original).sum()

    return objective


def run(spec: Fst, lab: RepairDefense) -> Network:
    """Renew the last layer and fine-tune everything."""

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        original = lab.victim.head.weight.detach()
        renew_head(lab, network)
        recipe = small_set_recipe(  # the authors' fine_tune/ft.py, which has no weight decay
            lab,
            len(lab.clean.fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            batch_size=spec.batch_size,
            weight_decay=0.0,
        )
        recipe.objective = shift_objective(spec.alpha, original)
        recipe.optimizer = partial(FixedNormSgd, network=network, norm=original.norm())
        train_steps(lab, stage, network, recipe, spec.steps)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))
