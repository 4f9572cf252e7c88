"""MixMatch (Berthelot et al. 2019) and symmetric cross-entropy (Wang et al. 2019b), for defenses that distrust labels.

The sources of the defenses have both from the same code (SCLBD/DBD, utils/trainer/semi.py and model/loss.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.mixmatch import MixMatchDefense
from worker.lab.compute import derive_seed, seeded_generator
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import TrainingDefense
from worker.lab.evaluation import predict_logits
from worker.lab.networks import Network
from worker.lab.stages import StageRun
from worker.lab.training import Batch, adam, constant

TEMPERATURE = 0.5  # of the guessed labels
ALPHA = 0.75  # of the beta distribution of mixing
CROSS_ENTROPY_WEIGHT = 0.1  # in the symmetric cross-entropy, beside 1 for the reverse one
LEAST_PROBABILITY, LEAST_TARGET = 1e-7, 1e-4

ChooseLabeled = Callable[[Network, int], Tensor]
"""The network as it is before an epoch, and the epoch's number from 1, to the samples that keep their label, bool
``[N]``."""


def symmetric_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``0.1 CE + RCE`` of each sample ``[B]``, from logits ``[B, classes]`` (Wang et al. 2019b, equation 7).

    RCE has prediction and label exchanged: ``-sum_k p_k log q_k``, ``log q_k`` being 0 for the label and log(1e-4) for
    the others. So it is bounded, and wrong labels pull less.
    """
    probabilities = logits.float().softmax(1).clamp(min=LEAST_PROBABILITY)
    others = probabilities.sum(1) - probabilities.gather(1, labels[:, None]).flatten()
    reverse = -math.log(LEAST_TARGET) * others
    return CROSS_ENTROPY_WEIGHT * F.cross_entropy(logits.float(), labels, reduction="none") + reverse


def symmetric_losses(lab: TrainingDefense, network: Network, split: Split) -> Tensor:
    """`symmetric_cross_entropy` of every sample of ``split`` ``[N]``, without augmentation."""
    return symmetric_cross_entropy(predict_logits(network, split.images, lab.compute), split.labels)


def lowest(values: Tensor, count: int) -> Tensor:
    """Bool ``[N]``, True for the ``count`` lowest of ``values`` ``[N]``."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort(stable=True)[:count]] = True
    return chosen


def sharpen(probabilities: Tensor) -> Tensor:
    """Guessed labels ``[B, classes]``: the probabilities to the power of 1 / T, scaled to a sum of 1 (equation 7)."""
    powers = probabilities ** (1 / TEMPERATURE)
    return powers / powers.sum(1, keepdim=True)


def mixmatch_loss(logits: Tensor, targets: Tensor, labeled: int, weight: float) -> Tensor:
    """Cross-entropy of the first ``labeled`` rows of ``logits`` ``[B, classes]`` with ``targets``, plus ``weight``
    times the mean square distance of the other rows' probabilities (equations 3 to 5)."""
    log_probabilities = logits.float().log_softmax(1)
    supervised = -(log_probabilities[:labeled] * targets[:labeled]).sum(1).mean()
    distances = (log_probabilities[labeled:].exp() - targets[labeled:]).square()
    return supervised + weight * distances.mean()


@dataclass
class MixMatch:
    """The objective of MixMatch, which draws its unlabeled images itself.

    Labels of unlabeled images are guessed from two augmentations by the network in training mode. Unlabeled images
    are drawn independently, where the sources go through them in random order; and all of a mixed batch goes through
    the network at once, where they exchange parts of three batches so that each has labeled and unlabeled images.
    """

    images: Images
    classes: int
    augment: Augment
    to_input: Callable[[Tensor], Tensor]
    full_weight: float
    """Weight of the unlabeled part, from `ramp` epochs on; before that it rises linearly."""
    ramp: float
    steps: int
    """Of an epoch."""
    unlabeled: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Rows of ``images``; set before every epoch, as are the following."""
    done: float = 0.0
    """Epochs, and then parts of them."""
    mixing: np.random.Generator = field(default_factory=np.random.default_rng)

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        count, generator, device = len(batch.x), batch.generator, batch.x.device
        rows = self.unlabeled[
            torch.randint(len(self.unlabeled), (count,), device=device, generator=generator)
        ]
        pixels = self.images[rows]
        views = [self.to_input(self.augment(pixels, generator)) for _ in range(2)]
        with torch.no_grad():
            guesses = sharpen(sum(network(view).float().softmax(1) for view in views) / 2)
        x = torch.cat([batch.x, *views])
        targets = torch.cat([F.one_hot(batch.labels, self.classes).float(), guesses, guesses])
        share = self.mixing.beta(ALPHA, ALPHA)
        share = max(share, 1 - share)
        other = torch.randperm(len(x), device=device, generator=generator)
        mixed = torch.lerp(x[other], x, share)
        mixed_targets = torch.lerp(targets[other], targets, share)
        weight = self.full_weight * min(1.0, self.done / self.ramp if self.ramp else 1.0)
        self.done += 1 / self.steps
        return mixmatch_loss(network(mixed), mixed_targets, count, weight)


def train_mixmatch(
    lab: TrainingDefense,
    stage: StageRun,
    network: Network,
    split: Split,
    spec: MixMatchDefense,
    epochs: int,
    choose_labeled: ChooseLabeled,
) -> None:
    """Train ``network`` on ``split`` for ``epochs``; samples lose their labels unless ``choose_labeled`` returns them.

    Everything that an epoch depends on follows from the network, the stage's stream and the epoch, so a resumed run
    equals an uninterrupted one.
    """
    device, batch_size = lab.compute.device, spec.mixmatch_batch_size
    steps = spec.mixmatch_steps or math.ceil(len(split) / (2 * batch_size))
    objective = MixMatch(
        split.images,
        lab.facts.classes,
        lab.recipe.augment,
        lab.compute.to_input,
        spec.unlabeled_weight,
        spec.ramp_epochs,
        steps,
    )

    def begin_epoch(epoch: int) -> Tensor:
        """Prepare the objective; returns the labeled rows, repeated or cut to the length of an epoch."""
        labeled = choose_labeled(network, epoch).to(device)
        objective.unlabeled = (~labeled).nonzero().flatten()
        objective.done = epoch - 1
        objective.mixing = np.random.default_rng(derive_seed("mixing", stage.planned.stream, epoch))
        rows, wanted = labeled.nonzero().flatten(), steps * batch_size
        generator = seeded_generator(device, "labeled", stage.planned.stream, epoch)
        passes = [
            rows[torch.randperm(len(rows), device=device, generator=generator)]
            for _ in range(math.ceil(wanted / len(rows)))
        ]
        return torch.cat(passes)[:wanted]

    recipe = replace(
        lab.recipe,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=spec.mixmatch_learning_rate,
        schedule=constant,
        optimizer=adam,
        objective=objective,
        memory={},
    )
    lab.fit_on(stage, network, split, recipe, rows=begin_epoch)
