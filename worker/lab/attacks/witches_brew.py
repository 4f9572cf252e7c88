"""Witches' Brew (Geiping et al. 2021): target-class images whose gradient teaches a class for one test image."""

from app.specs.attack import WitchesBrew
from worker.lab.attacks.base import SHOWN, AttackLab, Picture, Prepared
from worker.lab.attacks.gradient_matching import craft_poisons, goal_gradient
from worker.lab.attacks.one_image import OneImageAttack
from worker.lab.attacks.surrogate import train_surrogate
from worker.lab.stages import Outcome, StageRun


class WitchesBrewAttack(OneImageAttack[WitchesBrew]):
    """No trigger. The changes ``d``, within ``craft_epsilon``, minimize
    ``1 - cos(mean grad L(x + d, target_class), grad L(t, target_class))``, the gradients by the surrogate's parameters,
    ``t`` the test image (equation 3 of the paper)."""

    stream = "witches brew target"

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        clean = lab.train.images[lab.chosen]
        target = lab.test.images[state["target_image"].to(lab.test.images.device)]

        def compute(run: StageRun) -> Outcome:
            network.requires_grad_(True)
            goal = goal_gradient(network, lab, target, self.spec.target_class)
            restarts = self.spec.craft_restarts
            return run.finish(craft_poisons(run, lab, self.spec, network, clean, goal, restarts=restarts))

        images = lab.stage("poisons", compute).tensors["images"].to(clean.device)
        rows = {"target class": clean[:SHOWN], "poisoned": images[:SHOWN], "test image": target}
        picture = Picture(
            "poisoned images, and the test image whose gradient they imitate", list(rows.items())
        )
        return Prepared(state, images, pictures={"poisons": picture})
