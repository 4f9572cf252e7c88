"""Shared parts of the repair defenses: a recipe for small sets, copies of networks, and a check for lost accuracy."""

from dataclasses import replace

import torch
from torch import Tensor

from worker.lab.compute import Compute
from worker.lab.defenses.base import Defense, DetectionDefense, RepairDefense, copy_state, load_state
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe, Schedule, cosine

MIN_STEPS = 4  # per epoch, however small the clean set
ACCURACY_LOST = 0.05  # on the held-out clean images; a repair that loses more is warned about


def small_set_recipe(
    lab: Defense, samples: int, *, epochs: int, learning_rate: float, schedule: Schedule = cosine
) -> Recipe:
    """The experiment's recipe for ``samples`` images, with batches small enough that an epoch has four of them."""
    return replace(
        lab.recipe,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=schedule,
        batch_size=min(lab.recipe.batch_size, max(2, samples // MIN_STEPS)),
        memory={},
    )


def fine_tune(lab: RepairDefense, run: StageRun, network: Network, epochs: int, learning_rate: float) -> None:
    """Train ``network`` on the clean set with a cosine schedule."""
    fit = lab.clean.fit
    lab.fit_on(run, network, fit, small_set_recipe(lab, len(fit), epochs=epochs, learning_rate=learning_rate))


def finish_repair(
    lab: RepairDefense | DetectionDefense, run: StageRun, network: Network, clean: CleanSet, **facts: object
) -> Outcome:
    """The outcome of a repair: the network, and a warning if it lost accuracy on the held-out clean images."""
    before = accuracy(lab.victim, clean.held_out, lab.compute)
    after = accuracy(network, clean.held_out, lab.compute)
    images = len(clean.held_out)
    lost = (before - after) * images
    if lost > max(1.5, ACCURACY_LOST * images):  # one image more or less may be chance
        lab.warn(run, f"accuracy on {images} held-out clean images fell from {before:.0%} to {after:.0%}")
    lab.recorder.log(
        f"accuracy on {images} held-out clean images: {before:.3f} before, {after:.3f} after"
        + "".join(f"; {name} {value}" for name, value in facts.items())
    )
    return run.finish(copy_state(network))


def load_network(lab: Defense, outcome: Outcome) -> Network:
    """The network that a stage stored."""
    return load_state(lab.new_network("repair"), outcome.tensors, lab.compute.device)


def copy_network(lab: Defense, network: Network) -> Network:
    """A copy of a network."""
    return load_state(lab.new_network("repair"), copy_state(network), lab.compute.device)


def refresh_statistics(network: Network, images: Tensor, compute: Compute) -> None:
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
