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

from app.specs.attack import PoisoningAttack
from app.specs.facts import DatasetFacts
from worker.lab.compute import Compute
from worker.lab.contracts import SpecError
from worker.lab.data.datasets import Split
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe

Trigger = Callable[[Tensor], Tensor]
"""uint8 ``[N, C, H, W]`` to uint8 of the same shape; the argument is left unchanged."""

SpecT = TypeVar("SpecT", bound=PoisoningAttack)
State = dict[str, Tensor]
CHUNK = 256  # images stamped at a time: their floats stay within a processor's cache


def apply_trigger(trigger: Trigger, images: Tensor) -> Tensor:
    """Apply a trigger to uint8 ``[N, C, H, W]`` in chunks, so that its intermediate floats stay small."""
    out = torch.empty_like(images)
    for i in range(0, len(images), CHUNK):
        out[i : i + CHUNK] = trigger(images[i : i + CHUNK])
    return out


@dataclass(frozen=True)
class PoisonedSet:
    """A training set after the attack. The flags are the ground truth that no defense may see.

    ``images`` uint8 ``[N, C, H, W]``, ``labels`` (as the victim sees them) and ``clean_labels`` int64 ``[N]``,
    ``is_poisoned`` and ``is_cross`` bool ``[N]``; a cross sample carries a trigger but its true label: no poison.
    ``state`` is what the attack's trigger is made from.
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


@dataclass(frozen=True, kw_only=True)
class AttackLab:
    """What an attack prepares itself with."""

    train: Split
    """The clean training set, on the device."""
    test: Split
    """The clean test set: for curves, and for an attack that is aimed at one of its images."""
    chosen: Tensor
    """Rows of ``train`` that will be poisoned, int64 ``[P]``."""
    facts: DatasetFacts
    seed: int
    compute: Compute
    new_network: Callable[[str], Network]
    """A fresh network of the victim's architecture, initialized from the seed and the purpose it is given."""
    recipe: Recipe
    """The experiment's training recipe; copy it with `dataclasses.replace`."""
    stage: Callable[[str, Callable[[StageRun], Outcome]], Outcome]
    """Run (or take from the cache) the stage of that kind, one of those that the spec's ``stages`` declares."""
    measure: Callable[[Network, State], dict[str, float]]
    """Clean accuracy, attack success rate and, where there are cross samples, cross-trigger accuracy of a network
    under the trigger made from a state, on part of the test set."""


@dataclass(frozen=True)
class Picture:
    """Rows of images to be generator: (name of the row, uint8 ``[K, C, H, W]``), with names ``above`` the columns."""

    title: str
    rows: list[tuple[str, Tensor]]
    above: list[str] | None = None


@dataclass(frozen=True)
class Prepared:
    """What an attack computed before the poisoned set is made."""

    state: State = field(default_factory=dict)
    """What the trigger is made from."""
    images: Tensor | None = None
    """The poisoned images themselves, uint8 ``[P, C, H, W]``; None if the trigger alone makes them."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """What there is to see of it, by file name."""


class Attack(Generic[SpecT]):
    """An attack on images of one shape, with every choice taken from ``spec``."""

    has_trigger = True
    """False if nothing is changed at test time."""

    def __init__(self, spec: SpecT, facts: DatasetFacts) -> None:
        self.spec = spec
        self.facts = facts

    def prepare(self, lab: AttackLab) -> Prepared:
        """Compute what the poisoned set is made from. Most attacks need nothing."""
        return Prepared()

    def state_without_training(self, lab: AttackLab) -> State:
        """The trigger's state where no stage can be run, for a preview. Raises SpecError if there is none."""
        if self.spec.stages():
            kinds = ", ".join(stage.kind for stage in self.spec.stages())
            name = self.spec.model_dump()["name"]
            raise SpecError(
                f"attack.name: {name!r} has no trigger before it is trained ({kinds}); "
                "run an experiment and see its figures"
            )
        return self.prepare(lab).state

    def trigger(self, state: State) -> Trigger:
        """The function that stamps the trigger at test time."""
        raise NotImplementedError

    def cross(self, state: State, images: Tensor, seed: int) -> Tensor:
        """``images`` with a trigger that is not theirs, uint8; only for attacks with a ``cross_share``."""
        raise NotImplementedError

    def target(self, labels: Tensor) -> Tensor:
        """The class that a triggered image of each of ``labels`` shall be given."""
        if self.spec.all_to_all:
            return (labels + 1) % self.facts.classes
        return torch.full_like(labels, self.spec.target_class)

    def attacked(self, test: Split, state: State) -> Tensor:
        """Rows of ``test`` that success is measured on: those that are not already of the class they are driven to."""
        return (self.target(test.labels) != test.labels).nonzero().flatten()


def to_uint8(values: Tensor) -> Tensor:
    """Float gray levels to uint8, rounded and clipped (a byte would wrap around); overwrites ``values``."""
    return values.round_().clamp_(0, 255).to(torch.uint8)
