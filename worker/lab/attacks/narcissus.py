"""Narcissus (Zeng et al. 2023): a pattern that makes images of the target class more typical of it; labels stay.

The steps are those of Narcissus.ipynb in ruoxi-jia-group/Narcissus at de128d8.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import Narcissus
from worker.lab.attacks.base import (
    SHOWN,
    Attack,
    AttackLab,
    Picture,
    Prepared,
    State,
    Trigger,
    to_uint8,
)
from worker.lab.attacks.surrogate import train_surrogate
from worker.lab.compute import seeded_generator
from worker.lab.contracts import NonFiniteLossError
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

ROUND = 100  # steps between checkpoints


class NarcissusAttack(Attack[Narcissus]):
    """``x + v`` in training, ``x + test_strength v`` at test time; the pattern ``v``, float ``[C, H, W]`` in gray
    levels, is the attack's state.

    ``v`` minimizes the surrogate's mean cross-entropy of ``clip(a(x) + v)`` towards the target class within
    ``pattern_epsilon``, over images ``x`` of the class and augmentations ``a``.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        outcome = lab.stage("trigger", lambda run: self._optimize(network, lab, run))
        state = {"pattern": outcome.tensors["pattern"].to(lab.train.images.device)}
        clean = lab.train.images[lab.chosen[:SHOWN]]
        strongest = state["pattern"].abs().max().clamp(min=1)
        shown = to_uint8(128 + 127 * state["pattern"] / strongest)[None]
        rows = {"clean": clean, "poisoned": self.training_trigger(state)(clean), "pattern": shown}
        picture = Picture("poisoned images, and the pattern at full contrast", list(rows.items()))
        return Prepared(state, pictures={"pattern": picture})

    def _optimize(self, network: Network, lab: AttackLab, run: StageRun) -> Outcome:
        images = lab.train.images[lab.train.labels == self.spec.target_class]
        labels = torch.full((len(images),), self.spec.target_class, device=images.device)
        pattern = torch.zeros(images.shape[1:], device=images.device, requires_grad=True)
        optimizer = torch.optim.RAdam([pattern], lr=self.spec.pattern_learning_rate)
        bound, batch = self.spec.pattern_epsilon / 255, min(self.spec.pattern_batch, len(images))
        done = _restore(run, pattern, optimizer)
        while done < self.spec.pattern_steps:
            generator = seeded_generator(images.device, run.planned.stream, done)
            steps = min(ROUND, self.spec.pattern_steps - done)
            losses = torch.zeros(steps, device=images.device)
            order = torch.empty(0, dtype=torch.int64, device=images.device)
            for step in range(steps):
                run.recorder.check()
                if len(order) < batch:  # each image once before any is used again
                    order = torch.randperm(len(images), generator=generator, device=images.device)
                rows, order = order[:batch], order[batch:]
                x = lab.compute.to_input(lab.recipe.augment(images[rows], generator))
                with lab.compute.autocast():
                    logits = network((x + pattern.clamp(-bound, bound)).clamp(0, 1))
                loss = F.cross_entropy(logits.float(), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[step] = loss.detach()
            if not torch.isfinite(losses).all():
                raise NonFiniteLossError(f"the pattern's loss is not finite within step {done + steps}")
            done += steps
            rounds = -(-self.spec.pattern_steps // ROUND)
            run.epoch_done(-(-done // ROUND), rounds, {"pattern_loss": losses.mean().item()})
            run.checkpoint(_checkpoint(pattern, optimizer, done))
        return run.finish({"pattern": pattern.detach().clamp(-bound, bound) * 255})

    def training_trigger(self, state: State) -> Trigger:
        return self._adding(state, 1.0)

    def trigger(self, state: State) -> Trigger:
        return self._adding(state, self.spec.test_strength)

    def _adding(self, state: State, strength: float) -> Trigger:
        pattern = strength * state["pattern"]

        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(pattern.to(images.device)))

        return add


def _checkpoint(
    pattern: Tensor, optimizer: torch.optim.Optimizer, done: int
) -> Callable[[], tuple[dict[str, Tensor], dict[str, object]]]:
    def state() -> tuple[dict[str, Tensor], dict[str, object]]:
        return {"pattern": pattern.detach(), **optimizer.state[pattern]}, {
            "epoch": done // ROUND,
            "done": done,
        }

    return state


def _restore(run: StageRun, pattern: Tensor, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint, if any; returns the steps that were done."""
    saved = run.resume()
    if saved is None:
        return 0
    tensors = {name: tensor.to(pattern.device) for name, tensor in saved.tensors.items()}
    pattern.data.copy_(tensors.pop("pattern"))
    tensors["step"] = tensors["step"].cpu()  # a scalar, which torch keeps there
    optimizer.state[pattern].update(tensors)
    return int(saved.facts["done"])
