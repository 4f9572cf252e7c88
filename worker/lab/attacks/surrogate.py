"""The attacker's surrogate model, and adversarial examples made with it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import SurrogateAttack
from worker.lab.attacks.base import AttackLab
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import Images
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, train

Norm = Literal["l_inf", "l_2"]
CRAFT_CHUNK = 256  # images crafted at a time; a checkpoint may follow each chunk

Tick = Callable[[int, int], None]
"""Called before every step with (step, steps): checks whether the run is canceled, and reports progress."""


def train_surrogate(
    spec: SurrogateAttack, lab: AttackLab, kind: str = "surrogate", images: Images | None = None
) -> Network:
    """Train a model of the victim's architecture on the clean set; returned in evaluation mode with frozen weights.

    ``images`` uint8 ``[N, C, H, W]`` replace those of the training set, in a stage of its own ``kind``.
    """
    network = lab.new_network(kind)
    epsilon, steps = spec.surrogate_epsilon / 255, spec.surrogate_steps

    def adversarial(network: Network, batch: Batch) -> Tensor:
        x = pgd(
            network, batch.x, batch.labels, "l_inf", epsilon, 2.5 * epsilon / steps, steps, batch.generator
        )
        network.train()
        return F.cross_entropy(network(x).float(), batch.labels)

    def compute(run: StageRun) -> Outcome:
        recipe = replace(
            lab.recipe,
            epochs=spec.surrogate_epochs,
            objective=adversarial if spec.surrogate_adversarial else None,
            memory={},
        )
        train(
            run,
            network,
            lab.train.images if images is None else images,
            lab.train.labels,
            recipe,
            after_epoch=lambda network, epoch: lab.clean_accuracy(network),
        )
        return run.finish(dict(network.state_dict()))

    network.load_state_dict(lab.stage(kind, compute).tensors)
    network.to(lab.compute.device).eval().requires_grad_(False)
    return network


def pgd(
    network: Network,
    x: Tensor,
    labels: Tensor,
    norm: Norm,
    epsilon: float,
    step: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018) from a random start; leaves the network in
    evaluation mode.

    ``x`` float ``[N, C, H, W]`` in [0, 1]; ``epsilon`` and ``step`` on that scale, for ``l_2`` over a whole image.
    The result is in [0, 1] and within ``epsilon`` of ``x``.
    """
    network.eval()
    start = torch.empty_like(x).uniform_(-1, 1, generator=generator)
    moved = (x + _project(start * epsilon, norm, epsilon)).clamp(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        loss = F.cross_entropy(network(moved).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        change = _project(moved.detach() + step * _direction(gradient, norm) - x, norm, epsilon)
        moved = (x + change).clamp(0, 1)
    return moved.detach()


def _length(values: Tensor) -> Tensor:
    return values.flatten(1).square().sum(1).sqrt()[:, None, None, None]


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    return gradient.sign() if norm == "l_inf" else gradient / _length(gradient).clamp(min=1e-12)


def _project(change: Tensor, norm: Norm, epsilon: float) -> Tensor:
    if norm == "l_inf":
        return change.clamp(-epsilon, epsilon)
    return change * (epsilon / _length(change).clamp(min=1e-12)).clamp(max=1)


def quantize_within(moved: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Round float ``moved`` in [0, 1] to uint8 within ``epsilon`` gray levels (l_inf) of uint8 ``images``."""
    base = images.float()
    bound = int(epsilon)
    change = (moved * 255).round() - base
    return (base + change.clamp(-bound, bound)).clamp(0, 255).to(torch.uint8)


def craft_in_chunks(
    run: StageRun,
    images: Tensor,
    craft: Callable[[Tensor, torch.Generator, Tick], Tensor],
    *,
    chunk: int = CRAFT_CHUNK,
    measure: Callable[[Tensor], dict[str, float]] = lambda crafted: {},
) -> Tensor:
    """``craft(rows, generator, tick)`` for all rows of uint8 ``images``, ``chunk`` at a time.

    Resumes after the last chunk that was stored. Records the numbers that ``measure`` returns for all crafted images.
    """
    saved = run.resume()
    done = images[:0] if saved is None else saved.tensors["done"].to(images.device)
    device = images.device
    while len(done) < len(images):
        rows = torch.arange(len(done), min(len(done) + chunk, len(images)), device=device)
        before = len(done)

        def tick(step: int, steps: int, before: int = before, size: int = len(rows)) -> None:
            run.recorder.check()
            if step % 50 == 0:
                share = (before + size * step / steps) / len(images)
                run.recorder.progress(run.scope, 0, 1, run.progress.fraction(share * run.planned.epochs))

        generator = seeded_generator(device, run.planned.stream, before)
        done = torch.cat([done, craft(rows, generator, tick)])
        run.checkpoint(lambda done=done: ({"done": done}, {"epoch": 0}))  # type: ignore[misc]
    run.epoch_done(1, 1, measure(done))
    return done
