"""Kinds of artifacts, which the lab writes and the API shows."""

from typing import Literal

ArtifactKind = Literal["figure", "checkpoint", "table", "data"]

DETECTOR = "detector.safetensors"
"""Name of the file with what an input detection keeps from its calibration, in the folder of its seed and arm."""
