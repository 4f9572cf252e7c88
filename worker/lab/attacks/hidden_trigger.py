"""Hidden trigger (Saha et al. 2020): target-class images whose features match those of images with a patch.

Comments give the line of the authors' code, github.com/UMBCvision/Hidden-Trigger-Backdoor-Attacks at 91e5ee9.
"""

import torch
from torch import Tensor

from app.specs.attack import HiddenTrigger
from worker.lab.attacks.base import SHOWN, AttackLab, Picture, Prepared
from worker.lab.attacks.hidden_patch import HiddenPatchAttack
from worker.lab.attacks.surrogate import Tick, craft_in_chunks, quantize_within, train_surrogate
from worker.lab.compute import seeded_generator
from worker.lab.stages import Outcome, StageRun

BATCH = 100  # images that are crafted and paired together (generate_poison.py, data loaders)
HALF_LIFE = 1000  # steps after which the step length is halved (generate_poison.py, adjust_learning_rate)


def pair_greedily(distances: Tensor) -> Tensor:
    """Greedy one-to-one pairing by distances ``[N, N]``, closest pairs first: for each row its column.

    A pair in which each is the closest of the other is also what taking the globally closest pair first would select,
    so all such pairs are taken at once.
    """
    remaining, n = distances.clone(), len(distances)
    rows = torch.arange(n, device=remaining.device)
    partner = torch.full((n,), -1, dtype=torch.int64, device=remaining.device)
    while (open_ := partner < 0).any():
        column = remaining.argmin(1)
        mutual = open_ & (remaining.argmin(0)[column] == rows)
        partner[mutual] = column[mutual]
        remaining[mutual, :] = torch.inf
        remaining[:, column[mutual]] = torch.inf
    return partner


class HiddenTriggerAttack(HiddenPatchAttack[HiddenTrigger]):
    """At test time a square is replaced by a patch of random colors, uint8 ``[C, size, size]``, at a place that
    follows from the image and the seed.

    A poisoned image minimizes ``|f(z) - f(s)|^2`` within ``craft_epsilon`` of a target-class image, ``f`` the features
    of the attacker's model and ``s`` an image of the source class with the patch (equation 2 of the paper).
    """

    stream = "hidden trigger patch"

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        clean = lab.train.images[lab.chosen]
        labels, source = lab.train.labels, self.spec.source_class
        others = (
            (labels != self.spec.target_class if source is None else labels == source).nonzero().flatten()
        )
        generator = seeded_generator(torch.device("cpu"), "hidden trigger sources", lab.seed)
        # Each source is used once before any is used again, as by the authors' shuffled loader.
        rounds = -(-len(clean) // len(others))
        order = torch.cat([torch.randperm(len(others), generator=generator) for _ in range(rounds)])
        sources = self.trigger(state)(lab.train.images[others[order[: len(clean)].to(others.device)]])

        def features(images: Tensor) -> Tensor:
            with torch.no_grad():
                return network.features(lab.compute.to_input(images))

        def distance(images: Tensor) -> float:
            """Mean distance in feature space to the paired sources."""
            total = 0.0
            for some, goal in zip(images.split(BATCH), sources.split(BATCH), strict=True):
                distances = torch.cdist(features(some), features(goal))
                total += distances.gather(1, pair_greedily(distances)[:, None]).sum().item()
            return total / len(images)

        def compute(run: StageRun) -> Outcome:
            def craft(rows: Tensor, generator: torch.Generator, tick: Tick) -> Tensor:
                base, goals = lab.compute.to_input(clean[rows]), features(sources[rows])
                bound, z, steps = self.spec.craft_epsilon / 255, base, self.spec.craft_steps
                for step in range(steps):
                    tick(step, steps)
                    z = z.detach().requires_grad_(True)
                    f = network.features(z)
                    # Paired in every iteration (generate_poison.py:240).
                    partner = pair_greedily(torch.cdist(f.detach(), goals))
                    loss = (f - goals[partner]).square().sum()
                    (gradient,) = torch.autograd.grad(loss, z)
                    moved = z.detach() - self._step_length(step) * self._direction(gradient)
                    # Projection onto the ball (algorithm 1, step 5) and the range of pixels.
                    z = (base + (moved - base).clamp(-bound, bound)).clamp(0, 1)
                return quantize_within(z.detach(), clean[rows], self.spec.craft_epsilon)

            def measure(images: Tensor) -> dict[str, float]:
                before, after = distance(clean), distance(images)
                if after >= before:
                    run.warnings.append(
                        f"hidden_trigger: the poisons are not closer to their sources in feature space than the images "
                        f"that they were made from ({after:.3g} and {before:.3g}); change craft_learning_rate"
                    )
                return {"initial_feature_distance": before, "feature_distance": after}

            return run.finish({"images": craft_in_chunks(run, clean, craft, chunk=BATCH, measure=measure)})

        images = lab.stage("poisons", compute).tensors["images"].to(clean.device)
        rows = {"target class": clean, "poisoned": images, "hidden image": sources}
        picture = Picture(
            "poisoned images, and images with the trigger whose features they imitate (before pairing)",
            [(name, row[:SHOWN]) for name, row in rows.items()],
        )
        return Prepared(state, images, {"poisons": picture})

    def _step_length(self, step: int) -> float:
        if self.spec.craft_direction == "gradient":
            return self.spec.craft_learning_rate * 0.5 ** (step // HALF_LIFE)
        return self.spec.craft_learning_rate * (1 - step / self.spec.craft_steps)

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient if self.spec.craft_direction == "gradient" else gradient.sign()
