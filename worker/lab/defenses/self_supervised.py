"""Contrastive training of features, without labels or with those of some samples, for defenses.

SimCLR (Chen et al. 2020b) trains features in which two random views of an image are more alike than views of different
images. A label, and so a backdoor, plays no part in it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.lab.compute import Compute, seeded_global_generator
from worker.lab.data.augment import Augment
from worker.lab.defenses.base import TrainingDefense, copy_state
from worker.lab.networks import Network
from worker.lab.stages import StageRun
from worker.lab.training import Batch, Objective, Recipe, train

SMALLEST_AREA = (
    0.2  # of the image that a crop has (SCLBD/DBD, simclr/.../example.yaml; the D-ST authors' set_loader)
)
LARGEST_RATIO = 4 / 3  # of a crop's sides
JITTER, HUE = 0.4, 0.1  # strength of the change of brightness, contrast and saturation; turns of the hue
ChoosePositives = Callable[[Batch], Tensor]
"""A batch of B to bool ``[B, B]``; see `contrastive_loss`."""
PROJECTED = 128  # values that the loss compares
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Views:
    """SimCLR's random views of images: resized crop, flip, color jitter (4 of 5), gray (1 of 5), blur (1 of 2).

    Differences from torchvision's transforms, which act on one image at a time: crops are bilinear, the parts of the
    jitter come in a fixed order, and hue turns in YIQ instead of HSV.
    """

    flip: bool
    blur: bool

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A view of each image, float ``[B, C, H, W]`` in [0, 1]."""
        x = Augment(flip=self.flip)(resized_crops(x, generator), generator)
        x = jitter_colors(x, generator)
        if x.shape[1] == 3:
            gray = _is_drawn(x, 0.2, generator)
            x = torch.where(gray, _gray(x), x)
        return blur(x, generator) if self.blur else x


def resized_crops(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each image ``[B, C, H, W]``, at least a fifth of its area, at the image's size."""
    area = SMALLEST_AREA + (1 - SMALLEST_AREA) * _uniform(x, generator)
    ratio = (math.log(LARGEST_RATIO) * (2 * _uniform(x, generator) - 1)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across, down = (
        (1 - side) * (2 * _uniform(x, generator) - 1) for side in (width, height)
    )  # of the center, in halves
    zero = torch.zeros_like(area)
    rows = torch.stack([torch.cat([width, zero, across], 1), torch.cat([zero, height, down], 1)], 1)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter_colors(x: Tensor, generator: torch.Generator) -> Tensor:
    """Other brightness, contrast, saturation and hue of four in five images ``[B, C, H, W]``."""

    def factor() -> Tensor:
        return (1 + JITTER * (2 * _uniform(x, generator) - 1))[:, :, None, None]

    changed = x * factor()
    mean = _gray(changed).mean((1, 2, 3), keepdim=True)
    changed = mean + factor() * (changed - mean)
    if x.shape[1] == 3:
        gray = _gray(changed)
        changed = gray + factor() * (changed - gray)
        changed = turn_hue(changed, HUE * (2 * _uniform(x, generator) - 1))
    return torch.where(_is_drawn(x, 0.8, generator), changed.clamp(0, 1), x)


def blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """A Gaussian blur of half of the images ``[B, C, H, W]``, with a deviation of 0.1 to 2 pixels."""
    n, channels, height, width = x.shape
    radius = min(4, min(height, width) - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    deviation = 0.1 + 1.9 * _uniform(x, generator)
    kernel = (-(offsets**2) / (2 * deviation**2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    planes = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel, groups=n * channels)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=n * channels)
    return torch.where(_is_drawn(x, 0.5, generator), planes.view(n, channels, height, width), x)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand((len(x), 1), device=x.device, generator=generator)


def _is_drawn(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return (_uniform(x, generator) < probability)[:, :, None, None]


def _gray(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = TO_YIQ[0]
    return (red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]).expand_as(x)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the two color channels of YIQ by ``turns`` ``[B, 1]``."""
    to_yiq = torch.tensor(TO_YIQ)
    cosine, sine = (f(2 * math.pi * turns)[:, :, None] for f in (torch.cos, torch.sin))
    turn = torch.eye(3, device=x.device).repeat(len(x), 1, 1)
    turn[:, 1:2, 1:2], turn[:, 2:, 2:], turn[:, 1:2, 2:], turn[:, 2:, 1:2] = cosine, cosine, -sine, sine
    matrix = torch.linalg.inv(to_yiq).to(x.device) @ turn @ to_yiq.to(x.device)
    return torch.einsum("bij,bjhw->bihw", matrix, x)


def contrastive_loss(
    first: Tensor, second: Tensor, temperature: float, positives: Tensor | None = None
) -> Tensor:
    """NT-Xent (Chen et al. 2020b, equation 1): the mean over both views of
    ``-log(exp(s_ip / t) / sum_k exp(s_ik / t))``, ``s`` the cosines of the projections ``[B, D]``, ``p`` the other view
    and ``k`` everything but the sample itself.

    ``positives`` bool ``[B, B]`` names for each sample those whose views are all positives, over which the logarithms
    are averaged (Khosla et al. 2020, equation 2); None: each is its own only.
    """
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -1e9)
    if positives is None:
        positives = itself[: len(first), : len(first)]
    counted = positives.repeat(2, 2) & ~itself
    return -((logits.log_softmax(1) * counted).sum(1) / counted.sum(1)).mean()


class Projected(Network):
    """A network with a projection on its features, which is thrown away after the contrastive training."""

    def __init__(self, network: Network, batch_norm: bool) -> None:
        super().__init__(network.mean.shape[1])
        self.network = network
        width = network.head.weight.shape[1]
        between: list[nn.Module] = [nn.BatchNorm1d(width)] if batch_norm else []
        self.projection = nn.Sequential(
            nn.Linear(width, width), *between, nn.ReLU(), nn.Linear(width, PROJECTED)
        )

    def project(self, x: Tensor) -> Tensor:
        """``[B, PROJECTED]`` of images ``[B, C, H, W]``."""
        projected: Tensor = self.projection(self.network.features(x))
        return projected


def contrastive_objective(
    compute: Compute,
    views: Views,
    temperature: float,
    choose_positives: ChoosePositives | None = None,
    scale: float = 1.0,
) -> Objective:
    """`contrastive_loss` of two views of each image, times ``scale``."""

    def objective(network: Network, batch: Batch) -> Tensor:
        assert isinstance(network, Projected)
        with torch.no_grad(), compute.full_precision():
            both = torch.cat([views(batch.x, batch.generator) for _ in range(2)])
        first, second = network.project(both).chunk(2)
        positives = None if choose_positives is None else choose_positives(batch)
        return scale * contrastive_loss(first, second, temperature, positives)

    return objective


def train_features(
    lab: TrainingDefense, stage: StageRun, network: Network, recipe: Recipe, batch_norm: bool
) -> dict[str, Tensor]:
    """Train all of ``network`` but its head with a `contrastive_objective`; returns its tensors.

    ``recipe`` must not augment, since the objective does. No accuracy is recorded, as there is no classifier yet.
    """
    with seeded_global_generator(torch.device("cpu"), "projection", lab.seed):
        projected = Projected(network, batch_norm)
    train(stage, projected, lab.images, lab.labels, recipe)
    return copy_state(projected.network)
