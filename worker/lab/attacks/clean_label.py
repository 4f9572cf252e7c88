"""Label-consistent attack (Turner et al. 2019): perturb target-class images and add a trigger; labels stay."""

import torch
from torch import Tensor

from app.specs.attack import CleanLabel
from worker.lab.attacks.base import (
    SHOWN,
    Attack,
    AttackLab,
    Picture,
    Prepared,
    State,
    Trigger,
    apply_trigger,
    to_uint8,
)
from worker.lab.attacks.patches import checkerboard, patch_slices
from worker.lab.attacks.surrogate import craft_in_chunks, pgd, quantize_within, train_surrogate
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

GRID = {"l_inf": (8.0, 16.0, 32.0), "l_2": (300.0, 600.0, 1200.0)}  # gray levels; figure 1 of the paper


class CleanLabelAttack(Attack[CleanLabel]):
    """``clip(x + amplitude s)`` in the corners, ``s`` a checkerboard of +1 and -1 (poison_attack.py of
    MadryLab/label-consistent-backdoor-code, whose ``reduced_amplitude`` is amplitude / 255).

    The poisoned images are first perturbed by PGD, so that the content no longer explains the label."""

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        clean = lab.train.images[lab.chosen]

        def compute(run: StageRun) -> Outcome:
            def craft(rows: Tensor, generator: torch.Generator, tick: object) -> Tensor:
                run.recorder.check()
                return self._perturb(
                    network, lab, clean[rows], self.spec.pgd_norm, self.spec.pgd_epsilon, generator
                )

            return run.finish({"images": craft_in_chunks(run, clean, craft)})

        perturbed = lab.stage("perturbations", compute).tensors["images"].to(clean.device)
        images = apply_trigger(self.trigger({}), perturbed)
        return Prepared(images=images, pictures=self._pictures(network, lab, clean, perturbed, images))

    def state_without_training(self, lab: AttackLab) -> State:
        return {}  # at test time the trigger is added without perturbation

    def _perturb(
        self,
        network: Network,
        lab: AttackLab,
        images: Tensor,
        norm: str,
        epsilon: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Perturb uint8 images by PGD within ``epsilon`` gray levels; returns uint8."""
        steps = self.spec.pgd_steps
        # hkunzhe/label_consistent_attacks_pytorch, config/craft.yaml: 1.5 of 255 in 100 steps
        step = self.spec.pgd_step_size or (1.5 if norm == "l_inf" else 2.5 * epsilon / steps)
        labels = torch.full((len(images),), self.spec.target_class, device=images.device)
        x = lab.compute.to_input(images)
        with lab.compute.autocast():
            moved = pgd(network, x, labels, norm, epsilon / 255, step / 255, steps, generator)  # type: ignore[arg-type]
        return quantize_within(moved, images, epsilon) if norm == "l_inf" else to_uint8(moved * 255)

    def _pictures(
        self, network: Network, lab: AttackLab, clean: Tensor, perturbed: Tensor, images: Tensor
    ) -> dict[str, Picture]:
        """As figures 1 and 2 of the paper: one image under growing perturbations; perturbed, then with the trigger."""
        one = clean[:1]
        generator = torch.Generator(clean.device).manual_seed(lab.seed)
        grid = [
            (norm, torch.cat([one, *(self._perturb(network, lab, one, norm, e, generator) for e in levels)]))
            for norm, levels in GRID.items()
        ]
        rows = {"clean": clean, "perturbed": perturbed, "with trigger": images}
        return {
            "perturbation_grid": Picture(
                "one image under growing perturbations in two norms (gray levels)",
                grid,
                ["clean", "8 or 300", "16 or 600", "32 or 1200"],
            ),
            "perturb_then_stamp": Picture(
                f"poisoned images of class {self.facts.class_names[self.spec.target_class]}; their label stays",
                [(name, row[:SHOWN]) for name, row in rows.items()],
            ),
        }

    def trigger(self, state: State) -> Trigger:
        size, amplitude = self.spec.size, self.spec.amplitude
        square = (checkerboard(size).float() * 2 - 1) * amplitude
        names = ["bottom_right"]
        if self.spec.corners == "four":
            names += ["bottom_left", "top_right", "top_left"]
        pattern = torch.zeros((self.facts.height, self.facts.width))
        for name in names:
            rows, columns = patch_slices(name, size, 0, self.facts)  # type: ignore[arg-type]
            # poison_attack.py:33-71: left corners are mirrored, so that a flipped image has the same trigger; top ones
            # are not turned over.
            pattern[rows, columns] = square.flip(1) if name.endswith("left") else square

        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(pattern.to(images.device)))

        return add
