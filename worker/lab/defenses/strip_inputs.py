"""STRIP (Gao et al. 2019) in its authors' role: at test time, for every input.

Clean images are superimposed on the input; the prediction for a triggered one remains the target, so that the mean
entropy of its predictions is low (section 4). `strip` has the same test for the samples of the training set.

The overlays are drawn once, at calibration, so that an input's score does not depend on chance. BackdoorBench
(detection_infer/strip.py, `check`) draws them for each batch of 128 inputs.
"""

import torch
from torch import Tensor

from app.specs.defenses.input_detection import StripInputs
from worker.lab.compute import seeded_generator
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.detection import superimpose
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.defenses.strip import entropy_threshold
from worker.lab.evaluation import predict_logits


class Detector(InputDetector[StripInputs]):
    """Suspicion is minus the mean entropy, in nats."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        assert clean is not None
        images = clean.images
        generator = seeded_generator(torch.device("cpu"), "overlays", self.seed)
        chosen = torch.randperm(len(images), generator=generator)[: self.spec.overlays]
        overlays = images[chosen.to(images.device)]
        entropies = -self.score(images[torch.arange(len(images))], {"overlays": overlays})
        return {"overlays": overlays, "threshold": -torch.tensor(entropy_threshold(self.spec, entropies))}

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        overlays = state["overlays"].to(images.device)
        total = torch.zeros(len(images), device=images.device)
        for overlay in overlays:
            mixed = superimpose(images, overlay, self.spec.overlay_weight)
            log_probabilities = predict_logits(self.network, mixed, self.compute).log_softmax(1)
            total -= (log_probabilities.exp() * log_probabilities).sum(1)
        return -total / len(overlays)
