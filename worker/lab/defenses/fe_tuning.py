"""FE-tuning (Min et al. 2023): the features are fine-tuned to a last layer that is new and frozen.

Fine-tuning all weights leaves features of a rarely poisoned backdoor as they are, because the last layer already
classifies clean images. A new last layer that cannot adapt makes the features change (FE-tuning).
"""

from app.specs.defenses.tuning import FeTuning
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.heads import renew_head, scale_head
from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: FeTuning, lab: RepairDefense) -> Network:
    """Renew the last layer, freeze it, and fine-tune the rest."""

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        renew_head(lab, network)
        # The authors' fine_tune/ft.py scales the weights after every step in all its modes, so here from the second on.
        scale_head(network, lab.victim.head.weight.norm())
        network.head.requires_grad_(False)
        fine_tune(
            lab,
            stage,
            network,
            spec.steps,
            spec.learning_rate,
            batch_size=spec.batch_size,
            weight_decay=0.0,
        )
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))
