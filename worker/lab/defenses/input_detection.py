"""The frame of input detections: calibrate once, then score inputs, in a run or while a client waits."""

from typing import Any, Generic, TypeVar

from torch import Tensor

from app.specs.defenses.input_detection import InputDetection
from worker.lab.compute import Compute
from worker.lab.defenses.base import InputDetectionDefense
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix

SpecT = TypeVar("SpecT", bound=InputDetection)
DetectorState = dict[str, Tensor]
"""What a detector keeps from its calibration, by name; among it ``threshold``, a single number."""
STATE_PREFIX = "detector_"  # of the state's tensors in the stage


class InputDetector(Generic[SpecT]):
    """Scores the inputs of a network. Subclasses define `calibrate` and `score`.

    A score depends on the image, the network and the state only, not on the other images of a batch: an image has the
    same score in the results and when a client asks for it.
    """

    def __init__(self, spec: SpecT, network: Network, compute: Compute, seed: int) -> None:
        self.spec = spec
        self.network = network
        self.compute = compute
        self.seed = seed
        """The experiment's; random numbers come from generators seeded with it."""
        self.warnings: list[str] = []
        """Caveats for readers of the result, added by `calibrate`."""

    def calibrate(self, clean: CleanSet | None) -> DetectorState:
        """What scoring needs, computed before any input is seen. An input is flagged from ``threshold`` on."""
        raise NotImplementedError

    def score(self, images: Tensor, state: DetectorState) -> Tensor:
        """Suspicion ``[N]`` of uint8 ``[N, C, H, W]``; higher is more suspicious."""
        raise NotImplementedError


def detect_inputs(detector: InputDetector[Any], lab: InputDetectionDefense) -> Network:
    """Calibrate and have the lab score the test images; returns the victim, which stays as it is."""

    def detect(stage: StageRun) -> Outcome:
        state = detector.calibrate(lab.clean)
        for message in detector.warnings:
            lab.warn(stage, message)
        scores = lab.score_inputs(
            stage, lambda images: detector.score(images, state), state["threshold"].item()
        )
        return stage.finish(add_prefix("input_", scores._asdict()) | add_prefix(STATE_PREFIX, state))

    lab.stage("input_detection", detect)
    return lab.victim
