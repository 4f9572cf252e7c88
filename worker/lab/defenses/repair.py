"""Shared parts of the repair defenses: training for a number of steps, copies, and a check for lost accuracy."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from app.specs.defenses.repair_fields import MOST_EPOCHS
from worker.lab.compute import Compute
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import Defense, DetectionDefense, RepairDefense, copy_state, load_state
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.sgd import Optimizer, Sgd
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import AfterEpoch, MakeOptimizer, Recipe, Schedule, cosine, record_nothing

MIN_STEPS = 4  # per pass over the clean set, however small it is
ACCURACY_LOST = 0.05  # on clean images; a repair that loses more is warned about


def small_set_recipe(
    lab: Defense,
    samples: int,
    *,
    epochs: int,
    learning_rate: float,
    schedule: Schedule = cosine,
    batch_size: int | None = None,
    weight_decay: float | None = None,
) -> Recipe:
    """The experiment's recipe for ``samples`` images, with batches small enough that an epoch has four of them."""
    return replace(
        lab.recipe,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=schedule,
        batch_size=min(batch_size or lab.recipe.batch_size, max(2, samples // MIN_STEPS)),
        weight_decay=lab.recipe.weight_decay if weight_decay is None else weight_decay,
        memory={},
    )


def plain_sgd(parameters: Iterable[torch.nn.Parameter], recipe: Recipe) -> Optimizer:
    """SGD with momentum that is not Nesterov's, as BackdoorBench's `client_optimizer` and the MCR authors' train.py."""
    return Sgd(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def divide_steps(steps: int, batches: int, epochs: int | None = None) -> tuple[int, int]:
    """(epochs, repetitions of the data in each) for about ``steps`` batches, where a pass has ``batches``.

    The number of epochs is chosen unless it is given: each costs a measurement for the curves, so they are few.
    """
    if epochs is not None:
        return epochs, max(1, round(steps / (epochs * batches)))
    passes = max(1, round(steps / batches))
    repeats = math.ceil(passes / MOST_EPOCHS)
    return max(1, round(passes / repeats)), repeats


def train_steps(
    lab: RepairDefense,
    run: StageRun,
    network: Network,
    recipe: Recipe,
    steps: int,
    *,
    epochs: int | None = None,
    after_epoch: AfterEpoch = record_nothing,
) -> None:
    """Train ``network`` on the clean set for ``steps`` batches, rounded to whole passes.

    The recipe's number of epochs is replaced: by ``epochs``, or by at most `MOST_EPOCHS`. The set is repeated within
    an epoch, and shuffled with its repetitions.
    """
    fit = lab.clean.fit
    epochs, repeats = divide_steps(steps, math.ceil(len(fit) / recipe.batch_size), epochs)
    rows = torch.arange(len(fit), device=fit.labels.device).repeat(repeats)
    recipe.epochs = epochs
    lab.fit_on(run, network, fit, recipe, rows=rows, after_epoch=after_epoch)


def fine_tune(
    lab: RepairDefense,
    run: StageRun,
    network: Network,
    steps: int,
    learning_rate: float,
    *,
    batch_size: int | None = None,
    weight_decay: float | None = None,
    optimizer: MakeOptimizer = plain_sgd,
) -> None:
    """Train ``network`` on the clean set for a number of steps with a cosine schedule."""
    recipe = small_set_recipe(
        lab,
        len(lab.clean.fit),
        epochs=1,
        learning_rate=learning_rate,
        batch_size=batch_size,
        weight_decay=weight_decay,
    )
    recipe.optimizer = optimizer
    train_steps(lab, run, network, recipe, steps)


def finish_repair(
    lab: RepairDefense | DetectionDefense, run: StageRun, network: Network, clean: CleanSet, **facts: object
) -> Outcome:
    """The outcome of a repair: the network, and a warning if it lost accuracy on clean images.

    These are the held-out ones or, if none are held out, those that it was trained on: accuracy that is lost even on
    these is lost on others too, but accuracy that is kept on these may still be lost on others.
    """
    split, kind = (
        (clean.held_out, "held-out clean images")
        if len(clean.held_out)
        else (clean.fit, "clean training images")
    )
    before = accuracy(lab.victim, split, lab.compute)
    after = accuracy(network, split, lab.compute)
    images = len(split)
    lost = (before - after) * images
    if lost > max(1.5, ACCURACY_LOST * images):  # one image more or less may be chance
        lab.warn(run, f"accuracy on {images} {kind} fell from {before:.0%} to {after:.0%}")
    lab.recorder.log(
        f"accuracy on {images} {kind}: {before:.3f} before, {after:.3f} after"
        + "".join(f"; {name} {value}" for name, value in facts.items())
    )
    return run.finish(copy_state(network))


def load_network(lab: Defense, outcome: Outcome) -> Network:
    """The network that a stage stored."""
    return load_state(lab.new_network("repair"), outcome.tensors, lab.compute.device)


def copy_network(lab: Defense, network: Network) -> Network:
    """A copy of a network."""
    return load_state(lab.new_network("repair"), copy_state(network), lab.compute.device)


def refresh_statistics(network: Network, images: Images, compute: Compute) -> None:
    """Recompute batch normalization's running statistics as plain averages over ``images``, uint8, in order."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch then computes a cumulative average
    network.train()
    with torch.no_grad():
        for batch in images.split(512):
            network(compute.to_input(batch))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
