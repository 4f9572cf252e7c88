"""The common corruptions of Hendrycks and Dietterich (2019), as bethgelab/imagecorruptions (corruptions.py) has them.

They are for batches, and what the library draws at random for each image is drawn once for each corruption and
severity: a corrupted image depends on the image alone. `frost` is left out, since it adds photographs that only the
library has. The strengths are made for images of 32 pixels and more, to which the library is restricted.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.lab.compute import seeded_generator
from worker.lab.jpeg import compress_as_jpeg

SEVERITIES = 5
LEAST_SIDE = 32  # pixels


class Draws:
    """Random numbers of one corruption and severity, the same at every use and on every device."""

    def __init__(self, device: torch.device, *seed: object) -> None:
        self.device = device
        self.generator = seeded_generator(torch.device("cpu"), "corruption", *seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def angle(self, low: float, high: float) -> float:
        return low + (high - low) * self.uniform(1).item()


def corrupt(images: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """uint8 ``images`` ``[N, C, H, W]`` under the corruption ``name`` at ``severity``, 1 to 5."""
    draws = Draws(images.device, name, severity, seed)
    corrupted = CORRUPTIONS[name](images.float() / 255, severity - 1, draws)
    return (255 * corrupted.clamp(0, 1)).to(torch.uint8)  # the library cuts decimals too


# Each function takes float images in [0, 1] ``[N, C, H, W]`` and the severity counted from 0; `corrupt` clips.


def gaussian_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[severity] * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Poisson noise: the quantile of each pixel's distribution at a probability that is the pixel position's."""
    photons = (60, 25, 12, 5, 3)[severity]
    most = torch.arange(4 * photons, device=x.device, dtype=torch.float64)
    rates = photons * torch.arange(256, device=x.device, dtype=torch.float64)[:, None] / 255
    cumulated = (torch.xlogy(most, rates) - rates - torch.lgamma(most + 1)).exp().cumsum(1)
    probability = draws.uniform(x[0].numel()).double().expand(256, -1).contiguous()
    by_level = torch.searchsorted(cumulated, probability, out_int32=True)  # [256, C H W]
    levels = (255 * x).round().long().flatten(1)
    return (by_level.gather(0, levels).float() / photons).view_as(x)


def impulse_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    changed = draws.uniform(*x.shape[1:]) <= (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    salt = (draws.uniform(*x.shape[1:]) <= 0.5).float()
    return torch.where(changed, salt, x)


def defocus_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    radius, deviation = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity]
    half, soft = (8, 1) if radius <= 8 else (radius, 2)
    steps = torch.arange(-half, half + 1, device=x.device).float()
    disk = (steps**2 + steps[:, None] ** 2 <= radius**2).float()
    disk = blur(disk[None, None] / disk.sum(), (deviation, deviation), (soft, soft), mirror)[0, 0]
    rows, columns = (mirror(length, half, x.device) for length in x.shape[2:])
    return convolve(x[:, :, rows][:, :, :, columns], disk)


def glass_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blurred, shuffled within a few pixels, and blurred again."""
    deviation, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity]
    height, width = x.shape[2:]
    source = list(range(height * width))
    places = [(h, w) for h in range(height - reach, reach, -1) for w in range(width - reach, reach, -1)]
    moves = (draws.uniform(rounds, len(places), 2) * 2 * reach).long() - reach
    for round_moves in moves.tolist():
        for (h, w), (dx, dy) in zip(places, round_moves, strict=True):
            # The library means to swap two pixels; since both are views of one array, it copies one to the other.
            source[h * width + w] = source[(h + dy) * width + w + dx]
    radius = int(4 * deviation + 0.5)
    blurred = blur(x, (deviation, deviation), (radius, radius), clamp)
    blurred = (255 * blurred).floor() / 255
    shuffled = blurred.flatten(2)[:, :, torch.tensor(source, device=x.device)].view_as(x)
    return blur(shuffled, (deviation, deviation), (radius, radius), clamp)


def motion_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    radius, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity]
    return smear(x, radius, deviation, draws.angle(-45, 45))


def zoom_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity]
    factors = np.arange(1, last, step)
    height, width = x.shape[2:]
    return (x + sum(zoom(x, float(f))[:, :, :height, :width] for f in factors)) / (len(factors) + 1)


def snow(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Flakes, blurred along the wind, before a brightened image."""
    mean, deviation, factor, least, radius, spread, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity]
    height, width = x.shape[2:]
    flakes = zoom(mean + deviation * draws.normal(1, 1, height, width), factor)
    flakes = torch.where(flakes < least, 0.0, flakes.clamp(0, 1))
    flakes = smear(flakes, radius, spread, draws.angle(-135, -45))[:, :, :height, :width]
    light = x if x.shape[1] != 3 else (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, True)
    bright = kept * x + (1 - kept) * torch.maximum(x, 1.5 * light + 0.5)
    return bright + flakes + flakes.rot90(2, (2, 3))


def fog(x: Tensor, severity: int, draws: Draws) -> Tensor:
    density, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity]
    height, width = x.shape[2:]
    side = 2 ** math.ceil(math.log2(max(x.shape[1:])))
    cloud = plasma(side, decay, draws)[:height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + density * cloud) * brightest / (brightest + density)


def brightness(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """The value of HSV is raised, hue and saturation are kept."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity]).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-9), raised)


def contrast(x: Tensor, severity: int, draws: Draws) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity] + mean


def elastic_transform(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Every pixel is taken from a place nearby."""
    height, width = x.shape[2:]
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity]
    reach = 0.005 * height
    deviations = (0.01 * height, 0.01 * width)
    radii = (int(3 * deviations[0] + 0.5), int(3 * deviations[1] + 0.5))
    field = reach * (2 * draws.uniform(1, 2, height, width) - 1)
    across, down = strength * blur(field, deviations, radii, fold)[0]
    columns, rows = (torch.arange(n, device=x.device).float() for n in (width, height))
    grid = torch.stack([(2 * (columns + across) + 1) / width, (2 * (rows[:, None] + down) + 1) / height], -1)
    places = (grid - 1).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, places, padding_mode="reflection", align_corners=False)


def pixelate(x: Tensor, severity: int, draws: Draws) -> Tensor:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    for dim in (2, 3):
        length = x.shape[dim]
        few = max(1, int(share * length))
        # PIL's box filter averages whole pixels.
        centers = (torch.arange(few, device=x.device) + 0.5) * length / few
        distance = torch.arange(length, device=x.device) + 0.5 - centers[:, None]
        weights = ((distance > -length / few / 2) & (distance <= length / few / 2)).float()
        weights /= weights.sum(1, keepdim=True)
        nearest = ((torch.arange(length, device=x.device) + 0.5) * few / length).long()
        x = (x.transpose(dim, -1) @ weights[nearest].T).transpose(dim, -1)
    return x


def jpeg_compression(x: Tensor, severity: int, draws: Draws) -> Tensor:
    return compress_as_jpeg(x, (25, 18, 15, 10, 7)[severity])


Corruption = Callable[[Tensor, int, Draws], Tensor]
CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}


def mirror(length: int, pad: int, device: torch.device) -> Tensor:
    """Rows of an image of ``length`` continued by ``pad`` on both sides, mirrored at the outermost pixels' centers."""
    places = torch.arange(-pad, length + pad, device=device) % (2 * length - 2)
    return torch.where(places < length, places, 2 * length - 2 - places)


def fold(length: int, pad: int, device: torch.device) -> Tensor:
    """As `mirror`, at the outermost pixels' edges."""
    places = torch.arange(-pad, length + pad, device=device) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)


def clamp(length: int, pad: int, device: torch.device) -> Tensor:
    """As `mirror`, with the outermost pixels repeated."""
    return torch.arange(-pad, length + pad, device=device).clamp(0, length - 1)


def convolve(padded: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of padded images ``[N, C, H, W]`` under one ``kernel`` ``[h, w]``."""
    channels = padded.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def blur(
    x: Tensor,
    deviations: tuple[float, float],
    radii: tuple[int, int],
    continued: Callable[[int, int, torch.device], Tensor],
) -> Tensor:
    """Images ``[N, C, H, W]`` under a Gaussian with these deviations and radii along height and width."""
    for dim, deviation, radius in zip((2, 3), deviations, radii, strict=True):
        if not radius:
            continue
        steps = torch.arange(-radius, radius + 1, device=x.device).double()
        weights = (-(steps**2) / (2 * deviation**2)).exp()
        kernel = (weights / weights.sum()).float()
        padded = x.index_select(dim, continued(x.shape[dim], radius, x.device))
        x = convolve(padded, kernel[:, None] if dim == 2 else kernel[None])
    return x


def smear(x: Tensor, radius: int, deviation: float, angle: float) -> Tensor:
    """Images under half a Gaussian along a line; ``angle`` in degrees. Shifts beyond the image are left out."""
    height, width = x.shape[2:]
    weights = [math.exp(-(step**2) / (2 * deviation**2)) for step in range(2 * radius + 1)]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    out = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        down, right = -math.ceil(step * sine - 0.5), -math.ceil(step * cosine - 0.5)
        if abs(down) >= height or abs(right) >= width:
            break
        rows, columns = (
            (torch.arange(n, device=x.device) - by).clamp(0, n - 1)
            for n, by in ((height, down), (width, right))
        )
        out += weight / sum(weights) * x[:, :, rows][:, :, :, columns]
    return out


def zoom(x: Tensor, factor: float) -> Tensor:
    """The middle of images, enlarged linearly to at least their size."""
    parts: Sequence[int] = [math.ceil(n / factor) for n in x.shape[2:]]
    top, left = ((n - part) // 2 for n, part in zip(x.shape[2:], parts, strict=True))
    middle = x[:, :, top : top + parts[0], left : left + parts[1]]
    size = [round(part * factor) for part in parts]
    return F.interpolate(middle, size, mode="bilinear", align_corners=True)


def plasma(side: int, decay: float, draws: Draws) -> Tensor:
    """A cloud ``[side, side]`` in [0, 1] by the diamond-square algorithm; ``side`` is a power of two."""
    cloud = torch.zeros(side, side, device=draws.device)
    step, spread = side, 100.0

    def mean_of(neighbors: Tensor) -> Tensor:
        # The library multiplies the spread twice.
        return neighbors / 4 + spread**2 * (2 * draws.uniform(*neighbors.shape) - 1)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + corners.roll(-1, 0)
        cloud[half::step, half::step] = mean_of(pairs + pairs.roll(-1, 1))
        centers = cloud[half::step, half::step]
        above, beside = centers + centers.roll(1, 0), centers + centers.roll(1, 1)
        cloud[::step, half::step] = mean_of(above + corners + corners.roll(-1, 1))
        cloud[half::step, ::step] = mean_of(beside + corners + corners.roll(-1, 0))
        step, spread = half, spread / decay
    cloud -= cloud.min()
    return cloud / cloud.max()
