"""Cognitive distillation (Huang et al. 2023), from the authors' code, HanxunH/CognitiveDistillation.

For every image the smallest mask is learned with which the victim still returns the same logits, when what is masked
out is replaced by a random color. A trigger alone suffices for that, so a triggered image has a small
mask. An image is flagged if its mask is smaller than those of clean images by some standard deviations.
"""

import torch
from torch import Tensor

from app.specs.defenses.purification import CognitiveDistillation
from worker.lab.adam import Adam
from worker.lab.compute import Compute, seeded_generator
from worker.lab.data.streamed import Images
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.defenses.repair import copy_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

BETAS = (0.1, 0.1)  # of Adam, as in the authors' detection/cognitive_distillation.py
START = 1.0  # of the parameter t; the mask is tanh(t) / 2 + 1 / 2


def total_variation(masks: Tensor) -> Tensor:
    """Squared differences of neighboring pixels ``[B]``, per pixel, of ``[B, 1, H, W]``."""
    down = (masks[:, :, 1:] - masks[:, :, :-1]).square().sum((1, 2, 3))
    across = (masks[:, :, :, 1:] - masks[:, :, :, :-1]).square().sum((1, 2, 3))
    return (down + across) / masks[0].numel()


def distill(
    spec: CognitiveDistillation, victim: Network, x: Tensor, compute: Compute, generator: torch.Generator
) -> Tensor:
    """The L1 norms ``[B]`` of the masks of images ``x``, float ``[B, C, H, W]`` in [0, 1]."""
    parameter = torch.full((len(x), 1, *x.shape[2:]), START, device=x.device, requires_grad=True)
    adam = Adam([parameter], spec.learning_rate, BETAS)
    with torch.no_grad(), compute.autocast():
        goal = victim(x).float()
    for _ in range(spec.steps):
        masks = parameter.tanh() / 2 + 0.5
        color = torch.rand(len(x), x.shape[1], 1, 1, device=x.device, generator=generator)
        with compute.autocast():
            logits = victim(x * masks + (1 - masks) * color).float()
        loss = (logits - goal).abs().mean(1) + spec.mask_cost * masks.sum((1, 2, 3))
        total = (loss + spec.smoothness * total_variation(masks)).mean()
        adam.descend(torch.autograd.grad(total, [parameter]))
    return (parameter.detach().tanh() / 2 + 0.5).sum((1, 2, 3))


def mask_sizes(
    spec: CognitiveDistillation, lab: DetectionDefense, stage: StageRun, images: Images, purpose: str
) -> Tensor:
    """The mask's size ``[N]`` of every image."""
    victim = copy_network(lab, lab.victim).eval().requires_grad_(False)
    generator = seeded_generator(images.device, stage.planned.stream, purpose)
    parts = []
    for batch in images.split(lab.compute.evaluation_batch(images)):
        stage.recorder.check()
        parts.append(distill(spec, victim, lab.compute.to_input(batch), lab.compute, generator))
    return torch.cat(parts)


def run(spec: CognitiveDistillation, lab: DetectionDefense) -> Network:
    """Distill every image, flag small masks, and retrain."""
    assert lab.clean is not None
    clean = lab.clean.images

    def detect(stage: StageRun) -> Outcome:
        usual = mask_sizes(spec, lab, stage, clean, "clean")
        sizes = mask_sizes(spec, lab, stage, lab.images, "inspected")
        # Standard deviations below the clean mean, as in the authors' analysis/cognitive_distillation.py.
        suspicion = (usual.mean() - sizes) / usual.std().clamp(min=1e-6)
        return finish_detection(lab, stage, suspicion, suspicion > spec.threshold)

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
