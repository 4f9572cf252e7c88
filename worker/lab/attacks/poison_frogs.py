"""Poison Frogs (Shafahi et al. 2018): target-class images whose features collide with those of one test image."""

from collections.abc import Callable

import torch
from torch import Tensor

from app.specs.attack import PoisonFrogs
from worker.lab.attacks.base import SHOWN, Attack, AttackLab, Picture, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.surrogate import craft_in_chunks, train_surrogate
from worker.lab.compute import seeded_generator
from worker.lab.data.datasets import Split
from worker.lab.stages import Outcome, StageRun


class PoisonFrogsAttack(Attack[PoisonFrogs]):
    """No trigger. The state is the index of the test image to be misclassified, ``target_image`` int64 ``[1]``.

    Forward-backward splitting (algorithm 1 of the paper) from the watermarked base b:
    ``x <- (x - r grad |f(x) - f(t)|^2 + r beta b) / (1 + r beta)``, with
    ``beta = craft_similarity (features / input values)^2``.
    """

    has_trigger = False

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        clean = lab.train.images[lab.chosen]
        target = lab.test.images[state["target_image"]]
        opacity = self.spec.watermark

        def compute(run: StageRun) -> Outcome:
            def craft(rows: Tensor, generator: torch.Generator, tick: Callable[[int, int], None]) -> Tensor:
                goal_x = lab.compute.to_input(target)
                with torch.no_grad():
                    goal = network.features(goal_x)
                base = (1 - opacity) * lab.compute.to_input(clean[rows]) + opacity * goal_x
                ratio = goal.shape[1] / goal_x[0].numel()
                rate, beta = self.spec.craft_learning_rate, self.spec.craft_similarity * ratio**2
                x = base
                for step in range(self.spec.craft_steps):
                    tick(step, self.spec.craft_steps)
                    x = x.detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad((network.features(x) - goal).square().sum(), x)
                    forward = x.detach() - rate * gradient
                    # Backward step: keeps x close to the base image.
                    x = ((forward + rate * beta * base) / (1 + rate * beta)).clamp(0, 1)
                return to_uint8(x.detach() * 255)

            return run.finish({"images": craft_in_chunks(run, clean, craft)})

        images = lab.stage("poisons", compute).tensors["images"].to(clean.device)
        rows = {"target class": clean[:SHOWN], "poisoned": images[:SHOWN], "test image": target}
        picture = Picture(
            "poisoned images, and the test image whose features they imitate", list(rows.items())
        )
        return Prepared(state, images, {"poisons": picture})

    def state_without_training(self, lab: AttackLab) -> State:
        if self.spec.target_image is not None:
            return {"target_image": torch.tensor([self.spec.target_image])}
        others = (lab.test.labels.cpu() != self.spec.target_class).nonzero().flatten()
        generator = seeded_generator(torch.device("cpu"), "poison frogs target", lab.seed)
        return {"target_image": others[torch.randint(len(others), (1,), generator=generator)]}

    def trigger(self, state: State) -> Trigger:
        return Tensor.clone

    def attacked(self, test: Split, state: State) -> Tensor:
        return state["target_image"].to(test.labels.device)
