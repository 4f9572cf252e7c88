"""What an experiment stores."""

from typing import Literal

ArtifactKind = Literal["figure", "checkpoint", "table", "data"]
