"""Ordinary training of a second network inside a training: the loop and its checkpoint belong to the first one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.compute import seeded_generator, seeded_global_generator
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import iterate_batches
from worker.lab.defenses.base import TrainingDefense
from worker.lab.networks import Network
from worker.lab.sgd import Optimizer

BATCH = 128  # images, as in the sources of both defenses that need it


def train_for_an_epoch(
    lab: TrainingDefense,
    network: Network,
    split: Split,
    rows: Tensor,
    optimizer: Optimizer,
    *stream: object,
) -> None:
    """Train ``network`` with cross-entropy on ``rows`` of ``split``, with the experiment's augmentation.

    The order of samples and all augmentation follow from ``stream``.
    """
    device = lab.compute.device
    generator = seeded_generator(device, "inner", *stream)
    order = rows[torch.randperm(len(rows), device=device, generator=generator)]
    batches = [batch for batch in order.split(BATCH) if len(batch) > 1]
    network.train()
    with seeded_global_generator(device, "inner dropout", *stream):
        for batch, pixels in zip(batches, iterate_batches(split.images, batches), strict=True):
            lab.recorder.check()
            x = lab.compute.to_input(lab.recipe.augment(pixels, generator))
            optimizer.zero_grad()
            with lab.compute.autocast():
                loss = F.cross_entropy(network(x).float(), split.labels[batch])
            loss.backward()
            optimizer.step(None)
