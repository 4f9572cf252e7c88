"""ASSET, active separation via offset (Pan et al. 2023), from the authors' code, ruoxi-jia-group/ASSET.

A new model learns to tell nothing about clean images: the variance of its logits on the clean set is minimized. In
turn its loss on suspects of the training set is maximized. What the two leave is a high loss on poison and a low one
on the rest. The suspects are found again in every batch: a small network learns, on the victim's features, to tell the
batch from clean images, and the outliers of its output are suspects (ASSET_demo.ipynb, cell 8).

The features are those before pooling. Adam moves every weight alike, so what a step does to the small network's output
grows with their number: the code's rate, made for the 8,192 of a ResNet-18, is scaled to it. On digits, with 256, next
to no suspect is found at the rate itself.
The code takes them with each batch's own statistics, and scores the poison with its own, too; here the victim is in
evaluation mode, and so is the model when all samples are scored.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.defenses.purification import Asset
from worker.lab.adam import Adam
from worker.lab.compute import Compute
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.defenses.perceptron import apply_layers, make_layers
from worker.lab.defenses.repair import copy_network
from worker.lab.evaluation import sample_losses
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Recipe, constant, train

HIDDEN = 128  # units of each of the small network's two hidden layers
SEPARATION_RATE, FEATURES = 1e-4, 8192  # of Adam for the small network, and how many ResNet-18 gives it
OUTLYING = 2.0  # adjusted outlyingness from which a sample is a suspect
LEAST_SUSPECTS = (
    2  # batch normalization cannot train on one; BackdoorBench's asset.py leaves these batches out, too
)
DENSITY = 1e-6  # of scores at the threshold
SMALLEST = 1e-12  # keeps divisors from zero


def medcouple(values: Tensor) -> float:
    """The robust skewness in [-1, 1] of ``values`` ``[n]`` by Brys, Hubert and Struyf (2004).

    The median of ``((b - m) - (m - a)) / (b - a)`` over all pairs ``a <= m <= b``, ``m`` being the median. Pairs of
    values that both equal it count -1, 0 or 1, by their places.
    """
    ordered = values.double().sort().values - values.double().quantile(0.5)
    low, high = ordered[ordered <= 0], ordered[ordered >= 0]
    kernel = (high[:, None] + low) / (high[:, None] - low).clamp(min=SMALLEST)
    ties = int((ordered == 0).sum())
    places = torch.arange(ties, device=values.device)
    kernel[:ties, len(low) - ties :] = (places[:, None] + places - (ties - 1)).sign().double()
    return kernel.flatten().quantile(0.5).item()


def outlyingness(values: Tensor) -> Tensor:
    """How far each of ``[n]`` is from the median, in whiskers of a box plot that is adjusted for skewness."""
    median, low, high = (values.double().quantile(share) for share in (0.5, 0.25, 0.75))
    skew = medcouple(values)
    down, up = (-4, 3) if skew > 0 else (-3, 4)
    lower = low - 1.5 * math.exp(down * skew) * (high - low)
    upper = high + 1.5 * math.exp(up * skew) * (high - low)
    distance = values.double() - median
    whisker = torch.where(distance > 0, upper - median, median - lower)
    return distance.abs() / whisker.clamp(min=SMALLEST)


def score_threshold(scores: Tensor) -> float:
    """The score beyond which samples are flagged: where a normal distribution has the density `DENSITY`.

    It is fitted to the lower half of ``scores`` ``[n]`` (new_poi_util.py:542). There, deviation and root are outside of
    the logarithm, so that the threshold changes with the unit of the losses: on digits it flags half of the set.
    """
    lower = scores.double()[scores <= scores.quantile(0.5, interpolation="lower")]
    mean, deviation = lower.mean().item(), max(lower.std(correction=0).item(), SMALLEST)
    return mean + deviation * math.sqrt(max(0.0, -2 * math.log(DENSITY * deviation * math.sqrt(2 * math.pi))))


class Separator:
    """The small network of a batch, with a sigmoid for its output."""

    def __init__(self, inputs: int, generator: torch.Generator) -> None:
        self.layers = make_layers((inputs, HIDDEN, HIDDEN, 1), generator)

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs ``[n]`` of features ``[n, D]``."""
        return apply_layers(self.layers, x)

    def separate(self, batch: Tensor, clean: Tensor, steps: int) -> None:
        """Learn 1 for ``batch`` ``[n, D]`` and 0 for ``clean`` ``[m, D]``, in turn, each with moments of its own."""
        rate = SEPARATION_RATE * FEATURES / batch.shape[1]
        goals = [(x, goal, Adam(self.layers, rate)) for x, goal in ((batch, 1.0), (clean, 0.0))]
        for _ in range(steps):
            for x, goal, adam in goals:
                loss = (self(x) - goal).square().mean()
                adam.descend(torch.autograd.grad(loss, self.layers))


class Offset:
    """The two objectives of a batch, which `TwoSteps` asks for in turn."""

    def __init__(self, spec: Asset, victim: Network, clean: Images, compute: Compute) -> None:
        self.spec, self.victim, self.clean, self.compute = spec, victim, clean, compute
        self.on_clean = True
        self.skipped = False
        """Whether there were too few suspects, so that no step follows."""
        self.clean_x = torch.empty(0)

    def objective(self, network: Network, batch: Batch) -> Tensor:
        """The variance of the logits of clean images, or minus the loss on suspects."""
        self.skipped = False
        if self.on_clean:
            order = torch.randperm(len(self.clean), device=batch.x.device, generator=batch.generator)
            self.clean_x = self.compute.to_input(self.clean[order[: self.spec.batch_size]])
            variance: Tensor = network(self.clean_x).float().var(1).mean()
            return variance
        features, clean_features = self.features(batch.x), self.features(self.clean_x)
        separator = Separator(features.shape[1], batch.generator)
        separator.separate(features, clean_features, self.spec.separation_steps)
        with torch.no_grad():
            suspects = (outlyingness(separator(features).float()) > OUTLYING).nonzero().flatten()
        self.skipped = len(suspects) < LEAST_SUSPECTS
        if self.skipped:
            return 0 * network.head.weight.sum()
        return -F.cross_entropy(network(batch.x[suspects]).float(), batch.labels[suspects])

    def features(self, x: Tensor) -> Tensor:
        """The victim's last feature map, ``[n, C H W]``."""
        with torch.no_grad():
            return self.victim.feature_maps(x)[-1].flatten(1).float()


class TwoSteps:
    """A step of Adam on the clean images and one on the suspects, with moments of their own."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe, offset: Offset) -> None:
        self.parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": recipe.learning_rate}]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.offset = offset
        self.adams = [
            Adam(self.parameters, recipe.learning_rate, state=self.state, prefix=prefix)
            for prefix in ("clean_", "suspects_")
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, closure: Callable[[], float]) -> float:
        """Both steps; returns the loss of the second."""
        loss = 0.0
        for adam, on_clean in zip(self.adams, (True, False), strict=True):
            self.offset.on_clean = on_clean
            loss = closure()
            if not self.offset.skipped:
                adam.descend([parameter.grad for parameter in self.parameters])
        return loss


def run(spec: Asset, lab: DetectionDefense) -> Network:
    """Train the model that is offset on clean images and on suspects, flag high losses, and retrain."""
    assert lab.clean is not None
    clean = lab.clean.images

    def detect(stage: StageRun) -> Outcome:
        victim = copy_network(lab, lab.victim).eval()
        offset = Offset(spec, victim, clean, lab.compute)
        network = lab.new_network("offset")
        recipe = replace(
            lab.recipe,
            steps=spec.steps,
            batch_size=min(spec.batch_size, len(lab.labels)),
            learning_rate=spec.learning_rate,
            schedule=constant,
            augment=NO_AUGMENT,
            objective=offset.objective,
            optimizer=lambda parameters, recipe: TwoSteps(parameters, recipe, offset),
            memory={},
        )
        train(stage, network, lab.images, lab.labels, recipe)
        losses = sample_losses(network, lab.images, lab.labels, lab.compute)
        return finish_detection(lab, stage, losses, losses > score_threshold(losses))

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
