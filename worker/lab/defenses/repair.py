"""What the repair defenses share: the recipe on a small set, snapshots as stages, and the signs of damage."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worker.lab.defenses.base import Defense, DetectionDefense, RepairDefense, copy_state, load_state
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.evaluation import accuracy
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe, Schedule, cosine

FEWEST_STEPS = 4  # batches an epoch, however small the clean set
ACCURACY_LOST = 0.05  # a repair that costs more than this on the held-out clean images says so


def small_set_recipe(
    lab: Defense, samples: int, *, epochs: int, learning_rate: float, schedule: Schedule = cosine
) -> Recipe:
    """The experiment's recipe on ``samples`` images: batches are made smaller so that an epoch has four of them."""
    return replace(
        lab.recipe,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=schedule,
        batch_size=min(lab.recipe.batch_size, max(2, samples // FEWEST_STEPS)),
        memory={},
    )


def fine_tune(lab: RepairDefense, run: StageRun, network: Network, epochs: int, learning_rate: float) -> None:
    """Train on the clean set, cosine schedule."""
    fit = lab.clean.fit
    lab.fit_on(run, network, fit, small_set_recipe(lab, len(fit), epochs=epochs, learning_rate=learning_rate))


def finish_repair(
    lab: RepairDefense | DetectionDefense, run: StageRun, network: Network, clean: CleanSet, **facts: object
) -> Outcome:
    """The stage's outcome: the network, and a warning if it has lost accuracy on the held-out clean images."""
    before = accuracy(lab.victim, clean.held_out, lab.compute)
    after = accuracy(network, clean.held_out, lab.compute)
    images = len(clean.held_out)
    lost = (before - after) * images
    if lost > max(1.5, ACCURACY_LOST * images):  # a single image may be chance
        lab.warn(run, f"accuracy on {images} held-out clean images fell from {before:.0%} to {after:.0%}")
    lab.recorder.log(
        f"accuracy on {images} held-out clean images: {before:.3f} before, {after:.3f} after"
        + "".join(f"; {name} {value}" for name, value in facts.items())
    )
    return run.finish(copy_state(network))


def load_network(lab: Defense, outcome: Outcome) -> Network:
    """The network that a stage left."""
    return load_state(lab.new_network("repair"), outcome.tensors, lab.compute.device)


def copy_network(lab: Defense, network: Network) -> Network:
    """Another network with the same weights."""
    return load_state(lab.new_network("repair"), copy_state(network), lab.compute.device)


def refresh_statistics(network: Network, images: Tensor, to_input: Callable[[Tensor], Tensor]) -> None:
    """Recompute batch normalization's running statistics as plain averages over ``images``, uint8, in order."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for a cumulative average
    network.train()
    with torch.no_grad():
        for batch in images.split(512):
            network(to_input(batch))
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum
    network.eval()
