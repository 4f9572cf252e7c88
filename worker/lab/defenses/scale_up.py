"""SCALE-UP (Guo et al. 2023).

A triggered input keeps its class when all pixels are amplified, a clean one mostly does not. The scaled prediction
consistency is the share of factors that leave the class as it is; lines are those of backdoor-toolbox's
other_defenses_tool_box/scale_up.py, which equals BackdoorBox's core/defenses/SCALE_UP.py.
"""

import torch
from torch import Tensor

from app.specs.defenses.input_detection import ScaleUp
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.evaluation import predict_classes


class Detector(InputDetector[ScaleUp]):
    """Suspicion is the scaled prediction consistency, normalized or not."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        state = {"threshold": torch.tensor(self.spec.threshold)}  # lines 21 and 106
        if not self.spec.normalize:
            return state
        assert clean is not None
        images = clean.images
        # Of the true class, not of the predicted one (lines 183 to 189).
        consistency = self.consistency(images[torch.arange(len(images))], clean.fit.labels)
        # Where every clean image has the same consistency there is nothing to divide by.
        return state | {"mean": consistency.mean(), "std": consistency.std().clamp(min=1e-6)}

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        consistency = self.consistency(images, predict_classes(self.network, images, self.compute))
        if not self.spec.normalize:
            return consistency
        mean, std = (state[name].to(images.device) for name in ("mean", "std"))
        return (consistency - mean) / std  # lines 95 to 97

    def consistency(self, images: Tensor, classes: Tensor) -> Tensor:
        """The share ``[N]`` of the factors with which an image is assigned to its class, ``classes`` int64 ``[N]``.

        Lines 82 to 93.
        """
        same = torch.zeros(len(images), device=images.device)
        for scale in self.spec.scales:
            amplified = (images.int() * scale).clamp(max=255).to(torch.uint8)
            same += predict_classes(self.network, amplified, self.compute) == classes
        return same / len(self.spec.scales)
