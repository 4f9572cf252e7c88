"""Poison Frogs (Shafahi et al. 2018): target-class images whose features collide with those of one test image.

``util`` in comments is util_one_shot_kill_attack.py of github.com/ashafahi/inceptionv3-transferLearn-poison at 475e4a6.
"""

import torch
from torch import Tensor

from app.specs.attack import PoisonFrogs
from worker.lab.attacks.base import SHOWN, AttackLab, Picture, Prepared, to_uint8
from worker.lab.attacks.one_image import OneImageAttack
from worker.lab.attacks.surrogate import CRAFT_CHUNK, Tick, craft_in_chunks, train_surrogate
from worker.lab.stages import Outcome, StageRun


class PoisonFrogsAttack(OneImageAttack[PoisonFrogs]):
    """No trigger. The state is the index of the test image to be misclassified, ``target_image`` int64 ``[1]``.

    Forward-backward splitting (algorithm 1 of the paper) from the watermarked base b:
    ``x <- (x - r grad |f(x) - f(t)| + r beta b) / (1 + r beta)``, with
    ``beta = craft_similarity (255 features / input values)^2``.
    """

    stream = "poison frogs target"

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        clean = lab.train.images[lab.chosen]
        target = lab.test.images[state["target_image"]]
        opacity = self.spec.watermark

        goal_x = lab.compute.to_input(target)
        with torch.no_grad():
            goal = network.features(goal_x)
        # The weight beta of the authors' code (util_one_shot_kill_attack.py:297) is for pixels from 0 to 255.
        ratio = goal.shape[1] / goal_x[0].numel()
        beta = self.spec.craft_similarity * ratio**2 * 255**2

        def feature_distances(x: Tensor) -> Tensor:
            squared = (network.features(x) - goal).square().sum(1)
            # The root has no finite slope at zero.
            return squared if self.spec.craft_objective == "squared" else (squared + 1e-12).sqrt()

        def pixel_distances(x: Tensor, base: Tensor) -> Tensor:
            squared = (x - base).square().flatten(1).sum(1)
            return squared if self.spec.craft_objective == "squared" else squared.sqrt()

        def compute(run: StageRun) -> Outcome:
            def craft(rows: Tensor, generator: torch.Generator, tick: Tick) -> Tensor:
                # The watermark (section 4.1 of the paper).
                base = (1 - opacity) * lab.compute.to_input(clean[rows]) + opacity * goal_x
                rate = torch.full((len(rows), 1, 1, 1), self.spec.craft_learning_rate, device=base.device)
                x = base
                last = torch.full((len(rows),), torch.inf, device=base.device)
                accepted, slope = base, torch.zeros_like(base)
                for step in range(self.spec.craft_steps + 1):
                    tick(step, self.spec.craft_steps + 1)
                    x = x.detach().requires_grad_(True)
                    distances = feature_distances(x)
                    (gradient,) = torch.autograd.grad(distances.sum(), x)
                    objective = (distances + beta * pixel_distances(x, base)).detach()
                    # A step that raises the objective is taken back, and the step length halved (util:367-371).
                    better = objective < last
                    last = torch.where(better, objective, last)
                    better = better[:, None, None, None]
                    accepted = torch.where(better, x.detach(), accepted)
                    slope = torch.where(better, gradient, slope)
                    rate = torch.where(better, rate, rate / 2)
                    # Forward step (algorithm 1, line 3; util:243), then the backward step, which keeps x close to the
                    # base image (line 4; util:249).
                    forward = accepted - rate * slope
                    x = ((forward + rate * beta * base) / (1 + rate * beta)).clamp(0, 1)
                return to_uint8(accepted * 255)

            def measure(images: Tensor) -> dict[str, float]:
                values = {}
                for name, some in (("initial_feature_distance", clean), ("feature_distance", images)):
                    with torch.no_grad():
                        f = torch.cat(
                            [network.features(lab.compute.to_input(c)) for c in some.split(CRAFT_CHUNK)]
                        )
                    values[name] = (f - goal).norm(dim=1).mean().item()
                if values["feature_distance"] >= values["initial_feature_distance"]:
                    run.warnings.append(
                        "poison_frogs: the poisons are not closer to the target image in feature space than the "
                        f"images that they were made from ({values['feature_distance']:.3g} and "
                        f"{values['initial_feature_distance']:.3g}); change craft_learning_rate or craft_similarity"
                    )
                return values

            return run.finish({"images": craft_in_chunks(run, clean, craft, measure=measure)})

        images = lab.stage("poisons", compute).tensors["images"].to(clean.device)
        rows = {"target class": clean[:SHOWN], "poisoned": images[:SHOWN], "test image": target}
        picture = Picture(
            "poisoned images, and the test image whose features they imitate", list(rows.items())
        )
        return Prepared(state, images, {"poisons": picture})
