"""What an attack is.

An attack has a *trigger*, a pure function on uint8 images that is stamped on at test time, and makes a
*poisoned set* out of a clean one. Most differ only in the trigger. One that must compute something first
(a generator, perturbations) overrides `prepare`, whose tensors are kept with the poisoned set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from app.specs.facts import DatasetFacts

Trigger = Callable[[Tensor], Tensor]
"""uint8 ``[N, C, H, W]`` to uint8 of the same shape; the argument is left unchanged."""

SpecT = TypeVar("SpecT")
State = dict[str, Tensor]


@dataclass(frozen=True)
class PoisonedSet:
    """A training set after the attack. The flags are the ground truth that no defence may see.

    ``images`` uint8 ``[N, C, H, W]``, ``labels`` (as the victim sees them) and ``clean_labels`` int64 ``[N]``,
    ``is_poisoned`` and ``is_cross`` bool ``[N]``; a cross sample carries a trigger but its true label: no poison.
    """

    images: Tensor
    labels: Tensor
    clean_labels: Tensor
    is_poisoned: Tensor
    is_cross: Tensor
    state: State = field(default_factory=dict)

    def to(self, device: torch.device) -> "PoisonedSet":
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device)
            for name in ("images", "labels", "clean_labels", "is_poisoned", "is_cross")
        }
        return PoisonedSet(**moved, state={name: tensor.to(device) for name, tensor in self.state.items()})


class Attack(Generic[SpecT]):
    """An attack on images of one shape, with every choice taken from ``spec``."""

    def __init__(self, spec: SpecT, facts: DatasetFacts) -> None:
        self.spec = spec
        self.facts = facts

    def trigger(self, state: State) -> Trigger:
        """The function that stamps the trigger at test time."""
        raise NotImplementedError

    def poison(self, state: State) -> Trigger:
        """The function that turns a clean training image into a poisoned one; the trigger unless overridden."""
        return self.trigger(state)

    def target(self, labels: Tensor) -> Tensor:
        """The class that a triggered image of each of ``labels`` shall be given."""
        return torch.full_like(labels, self.spec.target_class)  # type: ignore[attr-defined]  # every attack has one
