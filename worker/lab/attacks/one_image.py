"""Attacks without a trigger, on a single test image."""

from typing import Generic, TypeVar

import torch
from torch import Tensor

from app.specs.attack import PoisonFrogs, WitchesBrew
from worker.lab.attacks.base import Attack, AttackLab, State, Trigger
from worker.lab.compute import seeded_generator
from worker.lab.data.datasets import Split

OneImageT = TypeVar("OneImageT", bound=PoisonFrogs | WitchesBrew)


class OneImageAttack(Attack[OneImageT], Generic[OneImageT]):
    """The state is the index of the test image to be misclassified, ``target_image`` int64 ``[1]``."""

    has_trigger = False
    stream: str
    """Name of the random stream that an image is drawn by if the spec names none."""

    def state_without_training(self, lab: AttackLab) -> State:
        if self.spec.target_image is not None:
            return {"target_image": torch.tensor([self.spec.target_image])}
        others = (lab.test.labels.cpu() != self.spec.target_class).nonzero().flatten()
        generator = seeded_generator(torch.device("cpu"), self.stream, lab.seed)
        return {"target_image": others[torch.randint(len(others), (1,), generator=generator)]}

    def trigger(self, state: State) -> Trigger:
        return Tensor.clone

    def attacked(self, test: Split, state: State) -> Tensor:
        return state["target_image"].to(test.labels.device)
