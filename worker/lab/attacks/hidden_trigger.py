"""Hidden trigger (Saha et al. 2020): target-class images whose features match those of images with a patch."""

from collections.abc import Callable

import torch
from torch import Tensor

from app.specs.attack import HiddenTrigger
from app.specs.checks import patch_size
from worker.lab.attacks.base import SHOWN, Attack, AttackLab, Picture, Prepared, State, Trigger
from worker.lab.attacks.patches import patch_slices
from worker.lab.attacks.surrogate import craft_in_chunks, quantize_within, train_surrogate
from worker.lab.compute import seeded_generator
from worker.lab.stages import Outcome, StageRun


def pair_greedily(distances: Tensor) -> Tensor:
    """Greedy one-to-one pairing by distances ``[N, N]``, closest pairs first: for each row its column."""
    remaining, n = distances.clone(), len(distances)
    partner = torch.zeros(n, dtype=torch.int64, device=remaining.device)
    for _ in range(n):
        row, column = divmod(int(remaining.argmin()), n)
        partner[row] = column
        remaining[row, :], remaining[:, column] = torch.inf, torch.inf
    return partner


class HiddenTriggerAttack(Attack[HiddenTrigger]):
    """At test time a square is replaced by a patch of random colors, uint8 ``[C, size, size]``, the attack's state.

    A poisoned image minimizes ``|f(z) - f(s)|^2`` within ``craft_epsilon`` of a target-class image, ``f`` the features
    of the attacker's model and ``s`` an image of another class with the patch (equation 2 of the paper).
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        clean = lab.train.images[lab.chosen]
        others = (lab.train.labels != self.spec.target_class).nonzero().flatten()
        generator = seeded_generator(torch.device("cpu"), "hidden trigger sources", lab.seed)
        order = torch.randint(len(others), (len(clean),), generator=generator).to(others.device)
        sources = self.trigger(state)(lab.train.images[others[order]])

        def compute(run: StageRun) -> Outcome:
            def craft(rows: Tensor, generator: torch.Generator, tick: Callable[[int, int], None]) -> Tensor:
                base = lab.compute.to_input(clean[rows])
                with torch.no_grad():
                    targets = network.features(lab.compute.to_input(sources[rows]))
                    targets = targets[pair_greedily(torch.cdist(network.features(base), targets))]
                bound, z = self.spec.craft_epsilon / 255, base
                for step in range(self.spec.craft_steps):
                    tick(step, self.spec.craft_steps)
                    z = z.detach().requires_grad_(True)
                    distance = (network.features(z) - targets).square().sum()
                    (gradient,) = torch.autograd.grad(distance, z)
                    # The paper steps along the gradient itself. Its size depends on the network, so here its sign
                    # is taken, with a fixed step size.
                    rate = self.spec.craft_learning_rate * (1 - step / self.spec.craft_steps)
                    moved = z.detach() - rate * gradient.sign()
                    z = (base + (moved - base).clamp(-bound, bound)).clamp(0, 1)
                return quantize_within(z.detach(), clean[rows], self.spec.craft_epsilon)

            return run.finish({"images": craft_in_chunks(run, clean, craft)})

        images = lab.stage("poisons", compute).tensors["images"].to(clean.device)
        rows = {"target class": clean, "poisoned": images, "hidden image": sources}
        picture = Picture(
            "poisoned images, and images with the trigger whose features they imitate (before pairing)",
            [(name, row[:SHOWN]) for name, row in rows.items()],
        )
        return Prepared(state, images, {"poisons": picture})

    def state_without_training(self, lab: AttackLab) -> State:
        size = patch_size(self.spec, self.facts)
        generator = seeded_generator(torch.device("cpu"), "hidden trigger patch", lab.seed)
        shape = (self.facts.channels, size, size)
        patch = torch.randint(2, shape, generator=generator, dtype=torch.uint8) * 255
        return {"patch": patch.to(lab.train.images.device)}

    def trigger(self, state: State) -> Trigger:
        patch = state["patch"]
        rows, columns = patch_slices(self.spec.position, patch.shape[-1], self.spec.margin, self.facts)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, rows, columns] = patch.to(images.device)
            return images

        return stamp
