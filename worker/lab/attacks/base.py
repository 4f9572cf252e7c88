"""The base class of attacks.

An attack has a *trigger*, a pure function on uint8 images that is applied at test time, and turns a clean training set
into a *poisoned set*. Most attacks differ only in the trigger. One that must compute something first (a generator,
perturbations) overrides `prepare`, whose tensors are stored with the poisoned set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

from app.specs.attack import PoisoningAttack
from app.specs.facts import DatasetFacts
from worker.lab.compute import Compute
from worker.lab.contracts import SpecError
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images, collect_like
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Recipe

Trigger = Callable[[Tensor], Tensor]
"""uint8 ``[N, C, H, W]`` to uint8 of the same shape; the argument is left unchanged."""

SpecT = TypeVar("SpecT", bound=PoisoningAttack)
State = dict[str, Tensor]
CHUNK = 256  # images at a time: their float copies fit into a CPU's cache
SHOWN = 6  # images in the pictures of an attack


@overload
def apply_trigger(trigger: Trigger, images: Tensor) -> Tensor: ...
@overload
def apply_trigger(trigger: Trigger, images: Images) -> Images: ...
def apply_trigger(trigger: Trigger, images: Images) -> Images:
    """Apply a trigger to uint8 ``[N, C, H, W]``, in chunks of `CHUNK`."""
    return change_by_row(lambda part, _: trigger(part), images)


@overload
def change_by_row(change: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> Tensor: ...
@overload
def change_by_row(change: Callable[[Tensor, Tensor], Tensor], images: Images) -> Images: ...
def change_by_row(change: Callable[[Tensor, Tensor], Tensor], images: Images) -> Images:
    """`apply_trigger` for a ``change`` that depends on the place of an image: it is given a chunk, and its rows."""
    rows = torch.arange(len(images), device=images.device).split(CHUNK)
    parts = (change(part, some) for part, some in zip(images.split(CHUNK), rows, strict=True) if len(part))
    return collect_like(images, len(images), parts)


@dataclass(frozen=True)
class PoisonedSet:
    """A training set after the attack. The flags are ground truth that no defense may see.

    ``images`` uint8 ``[N, C, H, W]``, ``labels`` (as the victim sees them) and ``clean_labels`` int64 ``[N]``,
    ``is_poisoned`` and ``is_cross`` bool ``[N]``; a cross sample has a trigger, mostly that of another image, and its
    true label, and is not poisoned. ``clean_labels`` and ``is_poisoned`` are None where they are not known, in a
    dataset that came poisoned. ``origin`` int64 ``[N]`` is the row of the clean set that each image was made
    from: its own, except for poisons that were appended. ``state`` are the tensors that define the attack's trigger.
    """

    images: Images
    labels: Tensor
    clean_labels: Tensor | None
    is_poisoned: Tensor | None
    is_cross: Tensor
    origin: Tensor
    state: State = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackLab:
    """What `Attack.prepare` may use."""

    train: Split
    """The clean training set, on the device."""
    test: Split
    """The clean test set: for curves, and for attacks that target one of its images."""
    chosen: Tensor
    """Rows of ``train`` that will be poisoned, int64 ``[P]``."""
    facts: DatasetFacts
    seed: int
    compute: Compute
    new_network: Callable[[str], Network]
    """A new network of the victim's architecture; its weights follow from the seed and the given purpose."""
    recipe: Recipe
    """The experiment's training recipe; copy it with `dataclasses.replace`."""
    stage: Callable[[str, Callable[[StageRun], Outcome]], Outcome]
    """Run the stage of that kind, or load it from the store; the spec's ``stages()`` must declare it."""
    clean_accuracy: Callable[[Network], dict[str, float]]
    """Clean accuracy on part of the test set, for the curves of the attacker's models."""
    measure: Callable[[Network, State], dict[str, float]]
    """(network, trigger state) to clean accuracy, attack success rate and, with cross samples, cross-trigger accuracy
    on part of the test set."""
    measure_fully: Callable[[Network, State], dict[str, float]]
    """The same on the whole test set."""


@dataclass(frozen=True)
class Picture:
    """A figure of rows of images, each (name, uint8 ``[K, C, H, W]``), with column names ``above``."""

    title: str
    rows: list[tuple[str, Tensor]]
    above: list[str] | None = None


@dataclass(frozen=True)
class Prepared:
    """What `Attack.prepare` computed."""

    state: State = field(default_factory=dict)
    """The tensors that define the trigger."""
    images: Tensor | None = None
    """The poisoned images, uint8 ``[P, C, H, W]``; None if they are the chosen images with the trigger."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """Figures of the preparation, by file name."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the attacker's own model, of `app.specs.metrics.OF_ATTACKER`, for the undefended arm."""
    rows: Tensor | None = None
    """Rows of the training set that are poisoned, sorted, int64 ``[P]``, where the attack selects them; None: the
    chosen ones."""


class Attack(Generic[SpecT]):
    """An attack on images of one shape; all hyperparameters are in ``spec``."""

    has_trigger = True
    """False if the attack changes no image at test time."""

    def __init__(self, spec: SpecT, facts: DatasetFacts) -> None:
        self.spec = spec
        self.facts = facts

    def prepare(self, lab: AttackLab) -> Prepared:
        """Compute what the trigger or the poisoned images need. The default computes nothing."""
        return Prepared()

    def state_without_training(self, lab: AttackLab) -> State:
        """The trigger's state without running a stage, for previews. Raises SpecError if a stage is needed."""
        if self.spec.stages():
            kinds = ", ".join(stage.kind for stage in self.spec.stages())
            name = self.spec.model_dump()["name"]
            raise SpecError(
                f"attack.name: {name!r} has no trigger before it is trained ({kinds}); "
                "run an experiment and see its figures"
            )
        return self.prepare(lab).state

    def trigger(self, state: State) -> Trigger:
        """The function that applies the trigger at test time."""
        raise NotImplementedError

    def training_trigger(self, state: State) -> Trigger:
        """The function that applies the trigger to training images; that of test time unless they differ."""
        return self.trigger(state)

    def cross(self, state: State, images: Images, seed: int) -> Images:
        """``images`` as cross samples, uint8, such as with the triggers of other images; only for attacks with a
        ``cross_share``."""
        raise NotImplementedError

    def target(self, labels: Tensor) -> Tensor:
        """The target class of triggered images with these ``labels``."""
        if self.spec.all_to_all:
            return (labels + 1) % self.facts.classes
        return torch.full_like(labels, self.spec.target_class)

    def targets(self, clean: Split) -> Tensor:
        """The target class of each of these images once it is triggered, where that also depends on the image."""
        return self.target(clean.labels)

    def attacked(self, test: Split, state: State) -> Tensor:
        """Rows of ``test`` that success is measured on: those not already of their target class."""
        return (self.targets(test) != test.labels).nonzero().flatten()


def to_uint8(values: Tensor) -> Tensor:
    """Float gray levels to uint8, rounded and clipped, since a cast alone wraps around; overwrites ``values``."""
    return values.round_().clamp_(0, 255).to(torch.uint8)
