"""An architecture in one file: MLP-Mixer (Tolstikhin et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from app.specs.base import field
from app.specs.models.base import Architecture, Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from app.specs.facts import Shape


class MlpMixer(Architecture):
    """MLP-Mixer (Tolstikhin et al., 2021), small: perceptrons across patches and across channels, in turn."""

    name: Literal["mlp_mixer"] = "mlp_mixer"
    patch: int = field(4, "Side of a patch.", unit="pixels", source="chosen here", ge=1, le=32)
    width: int = field(64, "Channels of a patch.", unit="channels", source="chosen here", ge=8, le=1024)
    blocks: int = field(4, "Number of blocks.", source="chosen here", ge=1, le=32)

    def traits(self, side: int) -> Traits:
        return Traits(
            batch_norm=False, spatial_maps=False, least_side=self.patch, multiple=self.patch, square=True
        )

    @classmethod
    def implementation(cls) -> Callable[[MlpMixer, Shape], nn.Module]:
        from torch import nn  # only workers call this: the API has no torch

        class Block(nn.Module):
            def __init__(self, patches: int, width: int) -> None:
                super().__init__()
                self.across_patches = nn.Sequential(
                    nn.Linear(patches, width), nn.GELU(), nn.Linear(width, patches)
                )
                self.across_channels = nn.Sequential(
                    nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
                )
                self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

            def forward(self, x: Tensor) -> Tensor:
                x = x + self.across_patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
                return x + self.across_channels(self.norm2(x))

        class Mixer(nn.Module):
            def __init__(self, spec: MlpMixer, shape: Shape) -> None:
                super().__init__()
                patches = (shape.height // spec.patch) * (shape.width // spec.patch)
                self.embed = nn.Conv2d(shape.channels, spec.width, spec.patch, spec.patch)
                self.blocks = nn.Sequential(*(Block(patches, spec.width) for _ in range(spec.blocks)))
                self.norm = nn.LayerNorm(spec.width)
                self.head = nn.Linear(spec.width, shape.classes)

            def forward(self, x: Tensor) -> Tensor:
                tokens = self.embed(x).flatten(2).transpose(1, 2)
                return self.head(self.norm(self.blocks(tokens)).mean(1))

        return Mixer
