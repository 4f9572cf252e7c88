"""TeCo (Liu et al. 2023).

Under growing corruption a clean image changes its class at about the same severity, whatever the corruption; a
triggered one at once under those that destroy the trigger, and late or never under the others. Lines are those of the
authors' BackdoorBench-v1.0-merge/defense/teco/teco.py, which equals BackdoorBench's detection_infer/teco.py.

There every corruption is applied to what the one before has left, because it is written into the list that it is read
from. Here each is applied to the input, as the paper describes it. The authors choose no threshold; here it is a
quantile of the clean set's deviations.
"""

import torch
from torch import Tensor

from app.specs.defenses.input_detection import Teco
from worker.lab.corruptions import LEAST_SIDE, corrupt
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.evaluation import predict_classes


class Detector(InputDetector[Teco]):
    """Suspicion is the deviation of the severities at which the class changes."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        assert clean is not None
        images = clean.images
        if min(images.shape[2:]) < LEAST_SIDE:
            self.warnings.append(
                f"the corruptions are made for images of {LEAST_SIDE} pixels and more; these have "
                f"{images.shape[3]}x{images.shape[2]}, of which blurs leave little"
            )
        suspicion = self.score(images[torch.arange(len(images))], {})
        threshold = torch.quantile(suspicion.double(), 1 - self.spec.false_positive_rate)
        return {"threshold": threshold.float()}

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        classes = predict_classes(self.network, images, self.compute)
        changes = torch.stack([self.find_changes(images, classes, name) for name in self.spec.corruptions])
        return changes.std(0, correction=0)  # np.std of the indices

    def find_changes(self, images: Tensor, classes: Tensor, corruption: str) -> Tensor:
        """The first severity ``[N]`` at which the class changes.

        One more than there are if it never does, as `args.max`.
        """
        last = self.spec.severities + 1
        found = torch.full((len(images),), last, device=images.device)
        for severity in range(self.spec.severities, 0, -1):
            corrupted = corrupt(images, corruption, severity, self.seed)
            found[predict_classes(self.network, corrupted, self.compute) != classes] = severity
        return found.float()
