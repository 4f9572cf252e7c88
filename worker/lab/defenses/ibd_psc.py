"""IBD-PSC (Hou et al. 2024).

Amplifying the last batch normalization layers leaves the model confident in the class of a triggered input, and
changes its mind about a clean one. The parameter-oriented scaling consistency is the mean probability that amplified
models give to the class that the victim predicts; lines are those of BackdoorBox's core/defenses/IBD_PSC.py.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from app.specs.defenses.input_detection import IbdPsc
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.input_detection import DetectorState, InputDetector
from worker.lab.evaluation import accuracy, predict_classes, predict_logits
from worker.lab.networks import Network


def count_layers(network: Network) -> int:
    """Batch normalization layers that can be amplified."""
    return len(_layers(network))


@contextmanager
def amplified(network: Network, count: int, factor: float) -> Iterator[None]:
    """Multiply weight and bias of the last ``count`` batch normalization layers by ``factor``, for a while.

    All of them if there are fewer (line 140 takes a slice). "Last" is by the order in which the network holds them.
    """
    parameters = [p for layer in _layers(network)[-count:] for p in (layer.weight, layer.bias)]
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(factor)
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)


def _layers(network: Network) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) and layer.affine]


class Detector(InputDetector[IbdPsc]):
    """Suspicion is the parameter-oriented scaling consistency."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        assert clean is not None
        count = self.find_first_count(clean)
        return {"first_count": torch.tensor(count), "threshold": torch.tensor(self.spec.threshold)}

    def find_first_count(self, clean: CleanSet) -> int:
        """The fewest amplified layers with which too many clean images are misclassified, plus one.

        `prob_start` counts from one layer to all but one (line 86), and the first model has one more (line 133).
        """
        layers = count_layers(self.network)
        for count in range(1, layers):
            with amplified(self.network, count, self.spec.amplification):
                if 1 - accuracy(self.network, clean.fit, self.compute) > self.spec.error_rate:
                    return count + 1
        # There the published code has no number and fails.
        self.warnings.append(
            f"amplifying all but one of the {layers} batch normalization layers misclassifies at most "
            f"{self.spec.error_rate:.0%} of the clean images, so all of them are amplified; raise `amplification`"
        )
        return layers

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        classes = predict_classes(self.network, images, self.compute)[:, None]
        first, layers = int(state["first_count"]), count_layers(self.network)
        total = torch.zeros(len(images), device=images.device)
        # Models that would amplify more layers than there are equal the one that amplifies all.
        counts = Counter(min(count, layers) for count in range(first, first + self.spec.models))
        for count, times in counts.items():
            with amplified(self.network, count, self.spec.amplification):
                probabilities = predict_logits(self.network, images, self.compute).softmax(1)
            total += times * probabilities.gather(1, classes)[:, 0]  # lines 133 to 143
        return total / self.spec.models
