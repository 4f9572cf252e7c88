"""Gradient matching (Geiping et al. 2021): images are changed so that training on them moves a network to a goal.

``witch_base.py`` in comments is of JonasGeiping/poisoning-gradient-matching at 90bd7d2, forest/witchcoven.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attacks.gradient_matching import GradientMatchingAttack
from worker.lab.attacks.base import AttackLab
from worker.lab.attacks.surrogate import quantize_within
from worker.lab.compute import seeded_generator
from worker.lab.contracts import NonFiniteLossError
from worker.lab.networks import Network
from worker.lab.stages import StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed

Gradient = Sequence[Tensor]
"""One tensor for each parameter of a network."""
CHUNK = 256  # images whose gradient is computed at once
REPORTED = 10  # steps between two points of the curve
BETAS, TINY = (0.9, 0.999), 1e-8  # torch's defaults for Adam
DROPS = (3 / 8, 5 / 8, 7 / 8)  # witch_base.py: attackiter // 2.667, 1.6 and 1.142


def loss_gradient(network: Network, x: Tensor, labels: Tensor, *, create_graph: bool = False) -> Gradient:
    """The gradient of the mean cross-entropy by the network's parameters; ``x`` float ``[N, C, H, W]`` in [0, 1]."""
    loss = F.cross_entropy(network(x).float(), labels)
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)


def goal_gradient(network: Network, lab: AttackLab, images: Tensor, target: int) -> Gradient:
    """The gradient that teaches the class ``target`` for uint8 ``images``, the mean over them."""
    total: list[Tensor] = []
    for some in images.split(CHUNK):
        labels = torch.full((len(some),), target, device=some.device)
        weight = len(some) / len(images)
        parts = [weight * part for part in loss_gradient(network, lab.compute.to_input(some), labels)]
        total = parts if not total else [a + b for a, b in zip(total, parts, strict=True)]
    return total


def mismatch(gradient: Gradient, goal: Gradient) -> Tensor:
    """1 minus the cosine of the angle between two gradients (equation 3 of the paper; the loss "similarity")."""
    product = torch.stack([(a * b).sum() for a, b in zip(gradient, goal, strict=True)]).sum()
    lengths = [torch.stack([part.square().sum() for part in g]).sum().sqrt() for g in (gradient, goal)]
    return 1 - product / (lengths[0] * lengths[1])


def largest_gradients(network: Network, lab: AttackLab, rows: Tensor, target: int, count: int) -> Tensor:
    """The ``count`` of ``rows`` whose loss has the largest gradient, sorted."""
    labels = torch.tensor([target], device=rows.device)
    norms = []
    # One image at a time: this runs once, and batched gradients of single images depend on a network's layers.
    for row in rows.split(1):
        gradient = loss_gradient(network, lab.compute.to_input(lab.train.images[row]), labels)
        norms.append(torch.stack([part.square().sum() for part in gradient]).sum())
    order = torch.stack(norms).argsort(descending=True, stable=True)
    return rows[order[:count]].sort().values


def craft_poisons(
    run: StageRun,
    lab: AttackLab,
    spec: GradientMatchingAttack,
    network: Network,
    images: Tensor,
    goal: Gradient,
    *,
    span: range | None = None,
    start: dict[str, Tensor] | None = None,
    restarts: int = 1,
) -> dict[str, Tensor]:
    """Change uint8 ``images`` ``[P, C, H, W]`` of the target class so that their gradient matches ``goal``.

    The network is in evaluation mode, and its parameters require gradients. ``span`` are the steps to take of
    ``craft_steps``, by default all, from ``start``, by default a random change. Of several ``restarts`` the result with
    the smallest loss in its last step is returned: ``images``, and ``change``, ``first`` and ``second`` for a later
    ``start``. Warns if the loss did not fall.
    """
    device, steps = images.device, span or range(spec.craft_steps)
    scale = network.std.to(device)
    base, bound = lab.compute.to_input(images), spec.craft_epsilon / 255
    labels = torch.full((len(images),), spec.target_class, device=device)
    # The changes are in deviations of the pixels, as in the authors' code, which normalizes images first.
    low, high = (-base).clamp(min=-bound) / scale, (1 - base).clamp(max=bound) / scale

    def begin(restart: int) -> dict[str, Tensor]:
        if start is not None:
            return {name: start[name].to(device) for name in ("change", "first", "second")}
        generator = seeded_generator(device, run.planned.stream, "restart", restart)
        drawn = torch.randn(base.shape, generator=generator, device=device) * bound / scale
        change = torch.minimum(torch.maximum(drawn, low), high)
        return {"change": change, "first": torch.zeros_like(change), "second": torch.zeros_like(change)}

    def signs(change: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The signs of the loss's gradient by the change, and the mean loss over the batches."""
        generator = seeded_generator(device, run.planned.stream, "step", number)
        gradient, losses = torch.empty_like(change), []
        for rows in torch.arange(len(images), device=device).split(spec.craft_batch):
            moved = change[rows].requires_grad_(True)
            x = lab.recipe.augment(base[rows] + moved * scale, generator)
            loss = mismatch(loss_gradient(network, x, labels[rows], create_graph=True), goal)
            (gradient[rows],) = torch.autograd.grad(loss, moved)
            losses.append(loss.detach())
        return gradient.sign_(), torch.stack(losses).mean()

    tensors, best = begin(0), dict[str, Tensor]()
    done, first_loss, best_loss = 0, math.inf, math.inf
    if (saved := run.resume()) is not None:
        tensors, best = (select_prefixed(saved.tensors, prefix, device) for prefix in ("now.", "best."))
        done, first_loss, best_loss = (saved.facts[name] for name in ("done", "first_loss", "best_loss"))
    total = restarts * len(steps)
    while done < total:
        run.recorder.check()
        restart, offset = divmod(done, len(steps))
        if offset == 0:
            tensors = begin(restart)
        gradient, loss_tensor = signs(tensors["change"], done)
        step = steps[offset]
        rate = spec.craft_learning_rate * 0.1 ** sum(step >= share * spec.craft_steps for share in DROPS)
        tensors = _adam(tensors, gradient, step + 1, rate)
        tensors["change"] = torch.minimum(torch.maximum(tensors["change"], low), high)
        done += 1
        if offset == 0 or done % REPORTED == 0 or offset == len(steps) - 1:
            loss = loss_tensor.item()
            if not torch.isfinite(loss_tensor):
                raise NonFiniteLossError(f"the matching loss became {loss} in step {step + 1}")
            first_loss = loss if done == 1 else first_loss
            run.epoch_done(done, total, {"matching_loss": loss})
            if offset == len(steps) - 1 and loss < best_loss:
                best, best_loss = {name: tensor.clone() for name, tensor in tensors.items()}, loss
        run.checkpoint(_checkpoint(tensors, best, done, first_loss, best_loss))
    if best_loss >= first_loss and len(steps) > 1:
        run.warnings.append(
            f"the poison's gradient is not closer to the goal than before ({best_loss:.3g} and {first_loss:.3g}); "
            "change craft_learning_rate"
        )
    moved = base + best["change"] * scale
    return {"images": quantize_within(moved, images, spec.craft_epsilon), **best}


def _adam(tensors: dict[str, Tensor], gradient: Tensor, step: int, rate: float) -> dict[str, Tensor]:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) on ``change``."""
    first = BETAS[0] * tensors["first"] + (1 - BETAS[0]) * gradient
    second = BETAS[1] * tensors["second"] + (1 - BETAS[1]) * gradient.square()
    mean, square = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
    return {
        "change": tensors["change"] - rate * mean / (square.sqrt() + TINY),
        "first": first,
        "second": second,
    }


def _checkpoint(
    tensors: dict[str, Tensor], best: dict[str, Tensor], done: int, first_loss: float, best_loss: float
) -> Callable[[], tuple[dict[str, Tensor], dict[str, object]]]:
    facts = {"epoch": done, "done": done, "first_loss": first_loss, "best_loss": best_loss}
    kept = add_prefix("now.", tensors) | add_prefix("best.", best)
    return lambda: (kept, dict[str, object](facts))
