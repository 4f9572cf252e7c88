"""Signs of poison that a model trained on everything shows, and one made of them that divides each class in two."""

import torch
from torch import Tensor

from worker.lab.data.datasets import Split
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
BIMODAL = 0.73  # separability above which a class is divided
MOST_STEPS = 10  # of `sharpen`, which ends sooner
RIDGE = 1e-3  # of the variance, added to it where signs are collinear


def measure_signs(lab: TrainingDefense, stage: StageRun, network: Network, split: Split) -> dict[str, Tensor]:
    """The signs by name of the samples of ``split``, which ``network`` was trained on; ``[N]`` each, on the CPU.

    - ``dominance``: the mean probability of the label with another training image added (STRIP, Gao et al. 2019, but
      for the label instead of the entropy). A trigger outlasts what is added to it.
    - ``unlikelihood``: minus the log-likelihood of the least likely activation of each layer, under the statistics of
      its batch normalization, summed over layers (FLARE, Hou et al. 2025). Left out where there is none.
    - ``projection``: that of the features on the class's direction of largest variance (spectral signatures, Tran et
      al. 2018). Which end is poison is not known.
    """
    images, labels = split.images, split.labels
    dominance = torch.zeros(len(labels), device=labels.device)
    for log_probabilities in predict_superimposed(lab, stage, network, images, images, OVERLAYS):
        dominance += log_probabilities.gather(1, labels[:, None]).flatten().exp() / OVERLAYS
    signs = {"dominance": dominance}
    if any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()):
        likelihoods = extract_with(network, least_likelihoods(network), images, lab.compute)
        signs["unlikelihood"] = -likelihoods.sum(1)
    features = extract_features(network, images, lab.compute)
    signs["projection"] = projection = torch.zeros_like(dominance)
    for label in labels.unique():
        members = labels == label
        projection[members] = project_on_top_direction(features[members]).float()
    return {name: sign.cpu() for name, sign in signs.items()}


def find_judged(labels: Tensor) -> list[int]:
    """The classes that can be judged: none if there are too few, and none that is too small."""
    classes, sizes = labels.unique(return_counts=True)
    return classes[sizes >= MIN_MEMBERS].tolist() if len(classes) >= MIN_CLASSES else []


def combine_signs(signs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """One sign for the ``signs``, ``[N]`` each, of samples with ``labels`` ``[N]``; which end is poison is not known.

    In each class it is the most separable of what `sharpen` finds, starting from every sign and from the first
    principal component of the standardized signs.
    """
    combined = torch.zeros(len(labels), dtype=torch.double)
    for label in labels.unique():
        members = labels == label
        values = torch.stack([sign[members].double() for sign in signs.values()], dim=1)
        # A sign that is the same for all members says nothing.
        values = (values - values.mean(0)) / values.std(0, correction=0).clamp(min=1e-9)
        component = values @ torch.linalg.eigh(values.T @ values).eigenvectors[:, -1]
        found = [sharpen(values, start) for start in (*values.T, component)]
        combined[members] = max(found, key=separability)
    return combined.float()


def sharpen(values: Tensor, start: Tensor) -> Tensor:
    """A combination of the columns of ``values`` ``[n, k]`` that divides the samples further than ``start`` ``[n]``.

    Otsu's threshold and Fisher's (1936) linear discriminant of its two sides in turn, while the separability grows: as
    in linear discriminant analysis with k-means (Ding and Li 2007), for two clusters.
    """
    identity = torch.eye(values.shape[1], dtype=values.dtype)
    for _ in range(MOST_STEPS):
        high = start > otsu_threshold(start)
        sides = [values[high], values[~high]]
        if min(map(len, sides)) < 2:
            break
        means = [side.mean(0) for side in sides]
        within = sum((side - mean).T @ (side - mean) for side, mean in zip(sides, means, strict=True))
        direction = torch.linalg.solve(within / len(values) + RIDGE * identity, means[0] - means[1])
        sharper = values @ direction
        if separability(sharper) <= separability(start):
            break
        start = sharper
    return start


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
