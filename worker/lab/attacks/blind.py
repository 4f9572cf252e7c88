"""Blind backdoor (Bagdasaryan and Shmatikov 2021): the loss of the training is manipulated; no image is poisoned.

Lines are those of ebagdasa/backdoors101 at 9f48fbb.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import Blind
from app.specs.attacks.training_control import PATTERN
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, train

LARGEST_NORMALIZER = 10.0  # utils/min_norm_solvers.py:229-234
SMALLEST_WEIGHT = 0.001  # utils/min_norm_solvers.py:21-30


class BlindAttack(Attack[Blind]):
    """A small pattern at a fixed place; the model is trained with ``a L(x, y) + b L(x', target)``.

    The weights ``a`` and ``b`` are fixed, or those of multiple gradient descent for each batch (section 3.4 of the
    paper).
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        outcome = lab.stage("joint", lambda run: self._train(lab, run))
        return Prepared(metrics={f"attacker_{n}": value for n, value in outcome.facts["model"].items()})

    def state_without_training(self, lab: AttackLab) -> State:
        return {}

    def _train(self, lab: AttackLab, run: StageRun) -> Outcome:
        network = lab.new_network("blind")
        pattern, shown = self._draw_pattern(lab.compute.device)
        batches = -(-len(lab.train) // lab.recipe.batch_size)
        # The last losses on clean images, infinite until the window is full; kept in checkpoints.
        history = torch.full((max(1, round(self.spec.history_epochs * batches)),), torch.inf)
        memory = {"history": history.to(lab.compute.device)}

        def objective(network: Network, batch: Batch) -> Tensor:
            threshold, count = self.spec.loss_threshold, round(self.spec.poisoning_rate * len(batch.x))
            attacks = threshold is None or bool(memory["history"].mean() < threshold)  # attack.py:51-53
            x = batch.x
            if attacks:  # synthesizers/synthesizer.py:23-24 and pattern_synthesizer.py:67-69
                x = torch.cat([x, torch.where(shown, pattern, x[:count]), x[count:]])
            # One call for both, so that their batch statistics are closer to the running ones used in evaluation.
            logits = network(x).float().split(len(batch.x))
            clean = F.cross_entropy(logits[0], batch.labels)
            memory["history"] = torch.cat([memory["history"][1:], clean.detach()[None]])  # attack.py:81-82
            if not attacks:
                return clean
            labels = torch.cat([self.target(batch.labels[:count]), batch.labels[count:]])
            backdoor = F.cross_entropy(logits[1], labels)
            a, b = self._weigh(clean, backdoor, network)
            return a * clean + b * backdoor  # attack.py:87-97

        recipe = replace(lab.recipe, epochs=self.spec.joint_epochs, objective=objective, memory=memory)
        train(
            run,
            network,
            lab.train.images,
            lab.train.labels,
            recipe,
            after_epoch=lambda network, epoch: lab.measure(network, {}),
        )
        network.eval()
        return run.finish(dict(network.state_dict()), model=lab.measure_fully(network, {}))

    def _weigh(
        self, clean: Tensor, backdoor: Tensor, network: Network
    ) -> tuple[Tensor | float, Tensor | float]:
        """The weights of the two losses."""
        if self.spec.balance == "fixed":
            return 1.0, self.spec.backdoor_weight
        parameters = [p for p in network.parameters() if p.requires_grad]
        first, second = (
            self._normalized(loss.detach(), torch.autograd.grad(loss, parameters, retain_graph=True))
            for loss in (backdoor, clean)  # the order of loss_tasks in the configuration
        )
        share = weigh_shortest(first, second)
        return 1 - share, share

    def _normalized(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        """The gradient as one vector, divided by its normalizer (utils/min_norm_solvers.py:207-241)."""
        vector = torch.cat([gradient.flatten().float() for gradient in gradients])
        kind = self.spec.normalization
        if kind == "none":
            return vector
        divisor: Tensor = {"l2": vector.norm(), "loss": loss, "loss+": loss * vector.norm()}[kind]
        if kind != "l2":
            divisor = divisor.clamp(max=LARGEST_NORMALIZER)
        return vector / (divisor + 1e-5)

    def _draw_pattern(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pattern float ``[H, W]`` in [0, 1], and where it is, bool ``[H, W]``."""
        pattern = torch.zeros((self.facts.height, self.facts.width))
        shown = torch.zeros_like(pattern, dtype=torch.bool)
        row, column = self.spec.place(self.facts)
        for i, values in enumerate(PATTERN):
            for j, value in enumerate(values):
                if value is not None:
                    pattern[row + i, column + j] = value / 255
                    shown[row + i, column + j] = True
        return pattern.to(device), shown.to(device)

    def trigger(self, state: State) -> Trigger:
        pattern, shown = self._draw_pattern(torch.device("cpu"))
        levels = (pattern * 255).to(torch.uint8)

        def stamp(images: Tensor) -> Tensor:
            return torch.where(shown.to(images.device), levels.to(images.device), images)

        return stamp


def weigh_shortest(first: Tensor, second: Tensor) -> Tensor:
    """The weight ``w`` of ``first`` for which ``w first + (1 - w) second`` is shortest, at least `SMALLEST_WEIGHT` and
    at most 1 less that (utils/min_norm_solvers.py:13-34; Sener and Koltun 2018, algorithm 1)."""
    aa, ab, bb = first @ first, first @ second, second @ second
    between = (bb - ab) / (aa + bb - 2 * ab)
    weight = torch.where(ab >= bb, SMALLEST_WEIGHT, between)
    return torch.where(ab >= aa, 1 - SMALLEST_WEIGHT, weight)
