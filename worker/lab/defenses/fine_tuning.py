"""Fine-tuning on clean data, the baseline of repair defenses."""

from app.specs.defenses.repair import FineTuning
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: FineTuning, lab: RepairDefense) -> Network:
    """Fine-tune the victim on the clean set."""

    def tune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim)
        fine_tune(  # BackdoorBench defense/ft.py, config/defense/ft/cifar10.yaml
            lab,
            stage,
            network,
            spec.steps,
            spec.learning_rate,
            batch_size=spec.batch_size,
            weight_decay=spec.weight_decay,
        )
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", tune))
