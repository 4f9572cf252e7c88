"""Attacks made of the triggers of others."""

from typing import Any, Generic, TypeVar

from app.specs.attacks.composed import ComposedAttack
from worker.lab.attacks import make_attack
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger
from worker.lab.tensor_names import select_prefixed

ComposedT = TypeVar("ComposedT", bound=ComposedAttack)


class PartsAttack(Attack[ComposedT], Generic[ComposedT]):
    """The state holds those of the parts, under their number."""

    def prepare(self, lab: AttackLab) -> Prepared:
        return Prepared(self.state_without_training(lab))

    def state_without_training(self, lab: AttackLab) -> State:
        return {
            f"{i}.{name}": tensor
            for i, part in enumerate(self._parts())
            for name, tensor in part.state_without_training(lab).items()
        }

    def part_triggers(self, state: State, training: bool) -> list[Trigger]:
        """The trigger of each part, in training or at test time."""
        triggers = []
        for i, part in enumerate(self._parts()):
            own = select_prefixed(state, f"{i}.")
            triggers.append(part.training_trigger(own) if training else part.trigger(own))
        return triggers

    def _parts(self) -> list[Attack[Any]]:
        made = [make_attack(part, self.facts) for part in self.spec.triggers]
        return [part for part in made if part is not None]
