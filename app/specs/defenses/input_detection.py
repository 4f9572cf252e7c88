"""Input detections, which score inputs at test time and leave the victim as it is."""

from typing import Any, ClassVar, Literal

from app.specs.base import preset_field
from app.specs.defenses.base import CleanSetDefense, Defense, Kind
from app.specs.defenses.detection import (
    STRIP_PRESETS,
    EntropyThreshold,
    entropy_threshold_field,
    false_positive_rate_field,
    overlay_weight_field,
    overlays_field,
)

PASSES_OF_AN_EPOCH = 8
"""Forward passes over the test images that take about as long as an epoch of training; for progress only."""


class InputDetection(Defense):
    """Base class of input detections."""

    kind: ClassVar[Kind] = "input_detection"

    @property
    def passes(self) -> int:
        """Forward passes of the network for one input."""
        raise NotImplementedError

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("input_detection", self.fields(), max(1, self.passes // PASSES_OF_AN_EPOCH))]


class StripInputs(InputDetection, CleanSetDefense):
    """STRIP (Gao et al., 2019) at test time: flag inputs whose prediction stays confident under overlaid images."""

    name: Literal["strip_inputs"] = "strip_inputs"
    presets = STRIP_PRESETS
    preset: Literal["recommended", "benchmark"] = preset_field(STRIP_PRESETS, "recommended")
    overlays: int = overlays_field()
    overlay_weight: float = overlay_weight_field()
    false_positive_rate: float = false_positive_rate_field()
    threshold: EntropyThreshold = entropy_threshold_field()

    @property
    def passes(self) -> int:
        return self.overlays
