"""SentiNet (Chou et al. 2020).

The region of an input that decides its class is pasted on clean images. If it is a trigger, they are assigned to the
input's class, and would not be if the region were noise, which leaves the model confident in their own. Clean inputs
fool few images, or cover much of them; a curve over the confidence bounds what they do, and an input is as suspicious
as it is far above. Lines are those of backdoor-toolbox's other_defenses_tool_box/sentinet.py, which for some attacks
takes the trigger's true place as the region; here it is always that of Grad-CAM.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.input_detection import SentiNet
from worker.lab.compute import Compute, seeded_generator
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.evaluation import predict_classes, predict_logits
from worker.lab.networks import Network

GRID = torch.linspace(
    -1, 2, 3001, dtype=torch.float64
)  # confidences at which the nearest point of a curve is sought


def grad_cam(network: Network, images: Tensor, compute: Compute) -> Tensor:
    """Importance ``[N, H, W]`` of the pixels of uint8 ``[N, C, H, W]`` for their predicted class, at least 0.

    Channels of the last feature map, weighted by the mean gradient of the class's logit (Selvaraju et al. 2017).
    """
    network.eval()
    parts = []
    for batch in images.split(compute.evaluation_batch(images)):
        with torch.enable_grad():
            logits, maps = network.logits_and_maps(compute.to_input(batch))
            (gradient,) = torch.autograd.grad(logits.amax(1).sum(), maps[-1])
        weighted = gradient.mean((2, 3), keepdim=True) * maps[-1].detach()
        heat = weighted.sum(1, keepdim=True).float().relu()
        parts.append(F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0])
    return torch.cat(parts)


def most_important(heat: Tensor, share: float) -> Tensor:
    """Bool ``[N, 1, H, W]``: the pixels above the smallest of the ``share`` largest values (lines 214 to 217)."""
    flat = heat.flatten(1)
    least = flat.topk(max(1, int(share * flat.shape[1])), dim=1).values[:, -1:]
    return (flat > least).view_as(heat)[:, None]


def fit_curve(confidence: Tensor, fooled: Tensor, bin_width: float) -> Tensor:
    """Coefficients ``[3]``, float64, of a parabola through the highest points of clean images (lines 115 to 145).

    ``confidence`` and ``fooled`` ``[M]``. Of each interval of confidence the largest share is taken, at the interval's
    middle. Intervals without an image are left out, which the reference gives the share 0.
    """
    confidence, fooled = confidence.double().cpu(), fooled.double().cpu()
    bins = ((confidence - confidence.min()) / bin_width).floor().long()
    highest = torch.full((int(bins.max()) + 1,), -1.0, dtype=torch.float64)
    highest.scatter_reduce_(0, bins, fooled, "amax")
    occupied = (highest >= 0).nonzero().flatten()
    middles = confidence.min() + (occupied.double() + 0.5) * bin_width
    powers = torch.stack([torch.ones_like(middles), middles, middles**2], 1)
    # The pseudo-inverse also exists where fewer than three intervals are occupied.
    curve: Tensor = torch.linalg.pinv(powers) @ highest[occupied]
    return curve


def signed_distance(curve: Tensor, confidence: Tensor, fooled: Tensor) -> Tensor:
    """Distance ``[N]`` of points from a parabola, negative below it (lines 326 to 333), on the CPU."""

    def height(x: Tensor) -> Tensor:
        return curve[0] + curve[1] * x + curve[2] * x**2

    x, y = confidence.double().cpu(), fooled.double().cpu()
    squares = (GRID - x[:, None]) ** 2 + (height(GRID) - y[:, None]) ** 2
    return squares.amin(1).sqrt() * torch.where(y < height(x), -1.0, 1.0)


class Detector(InputDetector[SentiNet]):
    """Suspicion is the signed distance from the curve of clean images."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        assert clean is not None
        images = clean.images
        generator = seeded_generator(torch.device("cpu"), "backgrounds", self.seed)
        order = torch.randperm(len(images), generator=generator).to(images.device)
        count = min(self.spec.backgrounds, len(images) // 2)
        backgrounds, others = images[order[:count]], images[order[count:]]
        confidence, fooled = self.paste_regions(others, backgrounds)
        curve = fit_curve(confidence, fooled, self.spec.bin_width)
        distances = signed_distance(curve, confidence, fooled)
        below = -distances[distances < 0]
        if self.spec.threshold == "boundary" and len(below):
            threshold = below.mean()  # lines 147 to 159
        else:
            threshold = distances.quantile(1 - self.spec.false_positive_rate)  # lines 336 to 340
        return {"backgrounds": backgrounds, "curve": curve, "threshold": threshold.float()}

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        confidence, fooled = self.paste_regions(images, state["backgrounds"].to(images.device))
        return signed_distance(state["curve"].cpu(), confidence, fooled).float()

    def paste_regions(self, images: Tensor, backgrounds: Tensor) -> tuple[Tensor, Tensor]:
        """Two shares ``[N]`` for images on all backgrounds (lines 219 to 239).

        The mean confidence where the region is noise, and how many get the image's class where they get its region.
        """
        region = most_important(grad_cam(self.network, images, self.compute), self.spec.region)
        classes = predict_classes(self.network, images, self.compute)
        generator = seeded_generator(torch.device("cpu"), "inert pattern", self.seed)
        noise = torch.randint(256, backgrounds.shape, dtype=torch.uint8, generator=generator)
        confidence = torch.zeros(len(images), device=images.device)
        fooled = torch.zeros(len(images), device=images.device)
        for background, inert in zip(backgrounds, noise.to(images.device), strict=True):
            pasted = torch.where(region, images, background)
            fooled += predict_classes(self.network, pasted, self.compute) == classes
            covered = torch.where(region, inert, background)
            confidence += predict_logits(self.network, covered, self.compute).softmax(1).amax(1)
        return confidence / len(backgrounds), fooled / len(backgrounds)
