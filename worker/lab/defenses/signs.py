"""Signs of poison that a model trained on everything shows, and how far each of them divides a class in two."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense
from worker.lab.defenses.detection import predict_superimposed
from worker.lab.defenses.flare import least_likelihoods
from worker.lab.defenses.spectral_signatures import project_on_top_direction
from worker.lab.evaluation import auroc, extract_features, extract_with
from worker.lab.networks import Network
from worker.lab.stages import StageRun

OVERLAYS = 8  # images that are added to each sample, one at a time
MIN_CLASSES = 3  # with two, poison and what it was made from fill both
MIN_MEMBERS = 50  # smaller classes look bimodal by chance
BIMODAL = 0.78  # separability above which a class is divided; a uniform distribution has 0.75


def measure_signs(lab: TrainingDefense, stage: StageRun, network: Network) -> dict[str, Tensor]:
    """The signs by name, ``[N]`` each, on the CPU.

    - ``dominance``: the mean probability of the label with another training image added (STRIP, Gao et al. 2019, but
      for the label instead of the entropy). A trigger outlasts what is added to it.
    - ``unlikelihood``: minus the log-likelihood of the least likely activation of each layer, under the statistics of
      its batch normalization, summed over layers (FLARE, Hou et al. 2025). Left out where there is none.
    - ``projection``: that of the features on the class's direction of largest variance (spectral signatures, Tran et
      al. 2018). Which end is poison is not known.
    """
    labels = lab.labels
    dominance = torch.zeros(len(labels), device=labels.device)
    for log_probabilities in predict_superimposed(lab, stage, network, lab.images, lab.images, OVERLAYS):
        dominance += log_probabilities.gather(1, labels[:, None]).flatten().exp() / OVERLAYS
    signs = {"dominance": dominance}
    if any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()):
        likelihoods = extract_with(network, least_likelihoods(network), lab.images, lab.compute)
        signs["unlikelihood"] = -likelihoods.sum(1)
    features = extract_features(network, lab.images, lab.compute)
    signs["projection"] = projection = torch.zeros_like(dominance)
    for label in labels.unique():
        members = labels == label
        projection[members] = project_on_top_direction(features[members]).float()
    return {name: sign.cpu() for name, sign in signs.items()}


@dataclass(frozen=True)
class Division:
    """A class that one sign divides in two."""

    label: int
    sign: str
    separability: float
    values: Tensor
    """The sign, ``[N]``."""
    high: Tensor
    """Members of the class above Otsu's threshold, bool ``[N]``."""
    low: Tensor
    """The other members."""

    @property
    def smaller(self) -> Tensor:
        return self.high if self.high.sum() <= self.low.sum() else self.low

    @property
    def larger(self) -> Tensor:
        return self.low if self.high.sum() <= self.low.sum() else self.high

    def doubt(self, flagged: Tensor) -> Tensor:
        """How near the members are to the side ``flagged``, ``[N]``; higher is nearer."""
        return self.values if torch.equal(flagged, self.high) else -self.values


def find_judged(labels: Tensor) -> list[int]:
    """The classes that can be judged: none if there are too few, and none that is too small."""
    classes, sizes = labels.unique(return_counts=True)
    return classes[sizes >= MIN_MEMBERS].tolist() if len(classes) >= MIN_CLASSES else []


def divide_classes(signs: dict[str, Tensor], labels: Tensor) -> list[Division]:
    """The classes that some sign divides in two, each by its most separable sign."""
    divisions = []
    for label in find_judged(labels):
        members = labels == label
        by_sign = {name: separability(values[members]) for name, values in signs.items()}
        name = max(by_sign, key=by_sign.__getitem__)
        if by_sign[name] >= BIMODAL:
            values = signs[name]
            high = members & (values > otsu_threshold(values[members]))
            divisions.append(Division(label, name, by_sign[name], values, high, members & ~high))
    return divisions


def otsu_threshold(values: Tensor) -> float:
    """Otsu's (1979) threshold: it maximizes the variance between the two groups that it separates."""
    ordered = values.double().sort().values
    n = len(ordered)
    if n < 2:
        return float(ordered[-1])
    left = torch.arange(1, n, dtype=torch.double)
    sums = ordered.cumsum(0)
    means_left = sums[:-1] / left
    means_right = (sums[-1] - sums[:-1]) / (n - left)
    # Exact over all n - 1 cuts of the sorted values, not over the bins of a histogram.
    between = left * (n - left) * (means_left - means_right) ** 2
    i = int(between.argmax())
    return float((ordered[i] + ordered[i + 1]) / 2)


def separability(values: Tensor) -> float:
    """Share of the variance of ``values`` that lies between the two sides of Otsu's threshold (Otsu 1979).

    0.64 for a normal distribution, 0.75 for a uniform one, 1 for two points.
    """
    values = values.double()
    high = values > otsu_threshold(values)
    if len(values) < 2 or not high.any():
        return 0.0
    share = high.double().mean()
    between = share * (1 - share) * (values[high].mean() - values[~high].mean()) ** 2
    return float(between / values.var(correction=0))


def unit_ranks(values: Tensor) -> Tensor:
    """Ranks scaled to [0, 1]; 1 is the highest."""
    return abl.smoothed_ranks([values]).float()


def auroc_or_half(scores: Tensor, positive: Tensor) -> float:
    """`auroc`, or 0.5 if ``positive`` is all True or all False."""
    return auroc(scores, positive) if positive.any() and not positive.all() else 0.5
