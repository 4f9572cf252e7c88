"""Kinds of artifacts, which the lab writes and the API shows."""

from typing import Literal

ArtifactKind = Literal["figure", "checkpoint", "table", "data"]
