"""TaCT (Tang et al. 2021, Demon in the Variant): a patch on images of one class is relabeled, on others it is not."""

from torch import Tensor

from app.specs.attack import Tact
from worker.lab.attacks.base import State, apply_trigger
from worker.lab.attacks.patches import PatchedAttack
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import Images


class TactAttack(PatchedAttack[Tact]):
    """Poisons are drawn from the source class, cover samples from the cover classes, both with the whole patch
    (vtu81/backdoor-toolbox at 9d4d909, poison_tool_box/TaCT.py, generate_poisoned_training_set)."""

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return apply_trigger(self.training_trigger(state), images)

    def attacked(self, test: Split, state: State) -> Tensor:
        """Rows of the source class: on others the trigger is not to work."""
        return (test.labels == self.spec.source_class).nonzero().flatten()
