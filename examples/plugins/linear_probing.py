"""A defense in one file: linear probing, a baseline of Min et al. (NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from app.specs.base import field
from app.specs.defenses.base import CleanSetDefense, Kind

if TYPE_CHECKING:
    from worker.lab.defenses.base import RepairDefense
    from worker.lab.networks import Network
    from worker.lab.stages import Outcome, StageRun


class LinearProbing(CleanSetDefense):
    """Linear probing (Min et al., 2023): only the last layer is trained further, on clean images."""

    kind: ClassVar[Kind] = "repair"

    name: Literal["linear_probing"] = "linear_probing"
    steps: int = field(
        200,
        "Batches, rounded to whole passes.",
        unit="batches",
        source="chosen here",
        ge=1,
        le=100000,
    )
    learning_rate: float = field(0.01, "Peak; cosine decay to zero.", source="Min et al. 2023", gt=0, le=10)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), 20)]

    @classmethod
    def implementation(cls) -> Callable[[LinearProbing, RepairDefense], Network]:
        from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network

        def run(spec: LinearProbing, lab: RepairDefense) -> Network:
            def tune(stage: StageRun) -> Outcome:
                network = copy_network(lab, lab.victim).requires_grad_(False)
                network.head.requires_grad_(True)
                fine_tune(lab, stage, network, spec.steps, spec.learning_rate)
                return finish_repair(lab, stage, network, lab.clean)

            return load_network(lab, lab.stage("repair", tune))

        return run
