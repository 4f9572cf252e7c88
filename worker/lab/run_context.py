"""What the stages of one experiment share."""

from dataclasses import dataclass, field

from app.specs.stages import PlannedStage
from worker.lab.compute import Compute
from worker.lab.contracts import Recorder, StageStore
from worker.lab.manifest import StageRecord
from worker.lab.stages import Progress, StageRun
from worker.lab.user_model import UserModel


@dataclass(frozen=True)
class RunContext:
    """Recorder, store, device, plan and progress of an experiment, and the stages that have run so far."""

    recorder: Recorder
    store: StageStore
    compute: Compute
    progress: Progress
    checkpoint_seconds: float
    plan: list[PlannedStage]
    user_model: UserModel | None
    done: list[StageRecord] = field(default_factory=list)

    def stage_run(self, kind: str, arm: str | None, seed: int) -> StageRun:
        """The run of a planned stage; its steps follow those of the arm's earlier stages.

        Raises LookupError for a kind that the spec's ``stages()`` does not declare.
        """
        of_arm = [stage for stage in self.plan if stage.arm == arm and stage.seed == seed]
        kinds = [stage.kind for stage in of_arm]
        if kind not in kinds:
            raise LookupError(f"stage {kind!r} of arm {arm!r} is not planned; planned are {', '.join(kinds)}")
        position = kinds.index(kind)
        return StageRun(
            of_arm[position],
            self.recorder,
            self.store,
            self.compute,
            self.progress,
            self.checkpoint_seconds,
            first_step=sum(stage.epochs for stage in of_arm[:position]),
        )
