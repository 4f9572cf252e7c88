"""Base class of architecture specs, and what the service knows of an architecture without torch."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple

from app.specs.base import Spec


class Traits(NamedTuple):
    """What an architecture has, and which images it accepts."""

    batch_norm: bool = True
    """Whether it has batch normalization, which some defenses change."""
    spatial_maps: bool = True
    """Whether it has feature maps of at least three resolutions, which some defenses compare."""
    least_side: int = 1
    """Smallest width and height of an image, in pixels."""
    multiple: int = 1
    """Width and height must be a multiple of it."""
    gradients: bool = True
    """Whether its gradients can be differentiated again, which some attacks do; not if layers round, for instance."""
    square: bool = False
    """Whether width and height must be equal; such an architecture is built for one size."""


def label_of(fields: Mapping[str, Any]) -> str:
    """The name that tells a network from others, in lists and in the leaderboard, from the ``fields`` of its spec.

    That of a library's model has its architecture, such as ``torchvision/vgg19_bn``.
    """
    return "/".join(str(fields[key]) for key in ("name", "architecture") if key in fields)


def reject_unknown(name: Any, known: Collection[str], allowed: str) -> None:
    """Raise ValueError if ``name`` is a string that is not in ``known``; pydantic's own error would list all of them.

    ``allowed`` begins the message, which ends with the nearest names.
    """
    if isinstance(name, str) and name not in known:
        close = get_close_matches(name, known, 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}" if close else ""
        raise ValueError(f"{allowed}{hint}")


def install_command(extra: str) -> str:
    """The command that installs an extra of this project."""
    return f"pip install 'backdoor-lab[{extra}]'"


class Architecture(Spec):
    """Base class of architectures."""

    extra: ClassVar[str] = ""
    """The extra of this project that workers need for it, named as the package that it installs; empty if none."""

    @property
    def label(self) -> str:
        """See `label_of`."""
        return label_of(self.model_dump())

    @classmethod
    def implementation(cls) -> Any:
        """The function that builds the network: from the spec and a `Shape` to a ``torch.nn.Module``.

        The module takes normalized images, float ``[N, C, H, W]``, and returns logits ``[N, classes]``. For plug-ins,
        which must import torch inside this method. The built-in architectures are in `worker.lab.networks`.
        """
        raise NotImplementedError

    def traits(self, side: int) -> Traits:
        """The traits for images whose shorter side has ``side`` pixels."""
        return Traits()
