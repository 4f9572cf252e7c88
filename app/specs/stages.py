"""The stages of an experiment and their content addresses.

A stage's stream is a hash of its kind, the part of the spec that it depends on, its parent's stream and the seed;
its random numbers follow from the stream. Its key is a hash of the lab's version and the stream. Equal keys mean equal
work, so stages are shared between arms, experiments and workers.
"""

from typing import Any, NamedTuple

from app.specs.attack import PoisoningAttack
from app.specs.attacks.base import ATTACK_LABELS, SURROGATE
from app.specs.base import Spec, digest
from app.specs.dataset import Imported, Uploaded
from app.specs.defense import DefenseSpec
from app.specs.defenses.base import DEFENSE_LABELS, VICTIM
from app.specs.experiment import ATTACK, CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.facts import STANDARD_SHA256
from app.specs.training import Precision

LAB_VERSION = 8
"""Increase this when the same spec and seed would give different numbers, even in their last bits. Finished stages are
then computed again, on the same random streams."""
STREAM_VERSION = 1
"""Increasing this gives every stage different random numbers."""


class PlannedStage(NamedTuple):
    """One stage of one arm and seed.

    ``arm`` is None for the poisoned set, which the arms share, and "attack" for what the attack computes before it.
    """

    kind: str
    arm: str | None
    seed: int
    stream: str
    epochs: int
    """Expected work in training epochs, for progress; the actual number may be smaller."""
    contents: tuple[str, ...] = ()
    """What may change while the lab's version and the stream stay the same: digests of the plug-in files that compute
    the stage, of a victim's file that shows the architecture, and of a built-in dataset whose content is not the
    standard one, and the precision that `auto` stands for.
    """

    @property
    def key(self) -> str:
        return digest([LAB_VERSION, self.stream, *self.contents])


def plan(
    spec: ExperimentSpec,
    data_version: str = "",
    victim_version: str = "",
    auto_precision: Precision = "float32",
) -> list[PlannedStage]:
    """Every stage of ``spec``, in the order in which a worker computes them.

    ``data_version`` is the digest of the dataset's content; empty: the standard content of a built-in dataset.
    ``victim_version`` is the SHA-256 of the file of a victim that the user provides; empty if the victim is trained.
    ``auto_precision`` is what the precision `auto` stands for on the machine that computes.
    """
    return [
        stage
        for seed in spec.seeds
        for stage in _SeedPlan(spec, seed, data_version, victim_version, auto_precision).stages
    ]


class _SeedPlan:
    """The stages of one seed, in order."""

    def __init__(
        self,
        spec: ExperimentSpec,
        seed: int,
        data_version: str,
        victim_version: str,
        auto_precision: Precision,
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.victim_version = victim_version
        self.stages: list[PlannedStage] = []
        is_users = isinstance(spec.dataset, Imported | Uploaded)
        is_standard = data_version in ("", STANDARD_SHA256.get(spec.dataset.name))
        # A built-in dataset keeps its random streams whatever it holds, so its content is not part of the stream.
        self.contents: tuple[str, ...] = () if is_users or is_standard else (data_version,)
        if spec.training.precision == "auto" and auto_precision != "float32":
            self.contents += (auto_precision,)
        # The content of an upload determines the numbers; its id does not.
        dataset = {
            "dataset": spec.dataset.model_dump(mode="json", exclude={"dataset_id"}),
            "version": data_version if is_users else "",
        }
        self.clean_data = digest(["data", dataset, seed])
        # Also the recipe of training defenses, which train from scratch whatever the victim starts from.
        self.victim = {"model": spec.model.model_dump(mode="json"), "training": spec.training.from_scratch()}
        self.attack_code = _code(spec.attack) + _code(spec.model)

        self.surrogate = ""
        self.poisoned = self.add_attack()
        self.models = {
            arm: self.add_victim(arm, data)
            for arm, data in ((CLEAN, self.clean_data), (UNDEFENDED, self.poisoned))
            if arm in spec.arms
        }
        for defense in spec.defenses:
            self.add_defense(defense)

    def add(
        self, kind: str, arm: str | None, depends_on: Any, parent: str, epochs: int, code: tuple[str, ...]
    ) -> str:
        """Append a stage and return its stream."""
        stream = digest([STREAM_VERSION, kind, depends_on, parent, self.seed])
        self.stages.append(PlannedStage(kind, arm, self.seed, stream, epochs, code + self.contents))
        return stream

    def add_attack(self) -> str:
        """What the attack computes, and the poisoned set, whose stream is returned."""
        attack = self.spec.attack
        prepared = self.clean_data
        if isinstance(attack, PoisoningAttack):
            # Neither the attack's name nor the victim's epochs: attacks that need the same surrogate share it.
            recipe = {
                "model": self.victim["model"],
                "training": {n: v for n, v in self.victim["training"].items() if n != "epochs"},
            }
            for kind, fields, epochs in attack.stages():
                prepared = self.add(kind, ATTACK, [fields, recipe], prepared, epochs, self.attack_code)
                if kind == SURROGATE:
                    self.surrogate = prepared
        fields = attack.model_dump(mode="json", exclude=set(ATTACK_LABELS))
        return self.add("poisoned_set", None, fields, prepared, 1, self.attack_code)

    def add_victim(self, arm: str, data: str) -> str:
        """The model of an arm without a defense; ``data`` is the stream of what it is trained on."""
        attack, tuning = self.spec.attack, self.spec.training.fine_tuning
        code = _code(self.spec.model) if arm == CLEAN and tuning is None else self.attack_code
        if self.victim_version and arm == self.spec.victim_arm:
            # The recipe stays part of the key because repair and detection train by it.
            fields = {**self.victim, "brought": self.victim_version}
            return self.add(VICTIM, arm, fields, self.poisoned, 0, code)
        if arm == UNDEFENDED and isinstance(attack, PoisoningAttack) and attack.hands_over:
            # The recipe, for the same reason.
            return self.add(VICTIM, arm, {**self.victim, "handed_over": True}, self.poisoned, 0, code)
        if tuning is not None:
            fields = {**self.victim, "fine_tuning": tuning.model_dump(mode="json")}
            return self.add(VICTIM, arm, fields, digest([data, self.surrogate]), tuning.epochs, code)
        return self.add(VICTIM, arm, self.victim, data, self.spec.training.epochs, code)

    def add_defense(self, defense: DefenseSpec) -> None:
        """The stages of a defense's arm."""
        arm, victim_arm, code = defense.arm_name, self.spec.victim_arm, self.attack_code
        # The others start from the victim: the undefended model, or the clean one if nothing is poisoned.
        from_data = defense.kind == "training"
        parent = digest([self.poisoned, self.victim]) if from_data else self.models[victim_arm]
        for kind, fields, epochs in defense.stages():
            if kind == VICTIM:
                data = self.clean_data if victim_arm == CLEAN else self.poisoned
                # A provided victim's file shows the architecture, which may differ from the one that others train.
                shown = (self.victim_version,) if self.victim_version else ()
                parent = self.add(VICTIM, arm, self.victim, data, self.spec.training.epochs, code + shown)
            else:
                # ABL's ranking is the same work for every defense that starts with it.
                owner = "abl" if kind == "isolation" else defense.name
                parent = self.add(kind, arm, [owner, fields], parent, epochs, code + _code(defense))


def _code(part: Spec) -> tuple[str, ...]:
    return (part.code,) if part.code else ()


def arm_keys(spec: ExperimentSpec, stages: list[PlannedStage]) -> dict[tuple[str, int], str]:
    """The content address of the numbers of each arm and seed; ``stages`` is the `plan` of ``spec``.

    Arms with equal keys have equal numbers, in any experiment and under any name: they have the same defense on the
    same poisoned set, victim and seed, computed on the same kind of device with the same precision.
    """
    poisoned = {stage.seed: stage.key for stage in stages if stage.kind == "poisoned_set"}
    # Later stages of an arm replace earlier ones.
    last = {(stage.arm, stage.seed): stage.key for stage in stages}
    defenses = {d.arm_name: d.model_dump(mode="json", exclude=set(DEFENSE_LABELS)) for d in spec.defenses}
    return {
        (arm, seed): digest(["arm", spec.device, poisoned[seed], last[arm, seed], defenses.get(arm)])
        for seed in spec.seeds
        for arm in spec.arms
    }
