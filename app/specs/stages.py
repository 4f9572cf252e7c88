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
from app.specs.defenses.base import DEFENSE_LABELS
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
    the stage and of a built-in dataset whose content is not the standard one, and the precision that `auto` stands for.
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
        for stage in _plan_seed(spec, seed, data_version, victim_version, auto_precision)
    ]


def _plan_seed(
    spec: ExperimentSpec, seed: int, data_version: str, victim_version: str, auto_precision: Precision
) -> list[PlannedStage]:
    stages: list[PlannedStage] = []
    is_users = isinstance(spec.dataset, Imported | Uploaded)
    is_standard = data_version in ("", STANDARD_SHA256.get(spec.dataset.name))
    # A built-in dataset keeps its random streams whatever it holds, so its content is not part of the stream.
    contents: tuple[str, ...] = () if is_users or is_standard else (data_version,)
    if spec.training.precision == "auto" and auto_precision != "float32":
        contents += (auto_precision,)

    def add(
        kind: str, arm: str | None, depends_on: Any, parent: str, epochs: int, code: tuple[str, ...] = ()
    ) -> str:
        """Append a stage and return its stream."""
        stream = digest([STREAM_VERSION, kind, depends_on, parent, seed])
        stages.append(PlannedStage(kind, arm, seed, stream, epochs, code + contents))
        return stream

    # The content of an upload determines the numbers; its id does not.
    dataset = {
        "dataset": spec.dataset.model_dump(mode="json", exclude={"dataset_id"}),
        "version": data_version if is_users else "",
    }
    clean_data = digest(["data", dataset, seed])
    # Also the recipe of training defenses, which train from scratch whatever the victim starts from.
    victim = {"model": spec.model.model_dump(mode="json"), "training": spec.training.from_scratch()}

    attack_code = _code(spec.attack) + _code(spec.model)
    prepared, surrogate = clean_data, ""
    if isinstance(spec.attack, PoisoningAttack):
        # Neither the attack's name nor the victim's epochs: attacks that need the same surrogate share it.
        recipe = {
            "model": victim["model"],
            "training": {n: v for n, v in victim["training"].items() if n != "epochs"},
        }
        for kind, fields, epochs in spec.attack.stages():
            prepared = add(kind, ATTACK, [fields, recipe], prepared, epochs, attack_code)
            if kind == SURROGATE:
                surrogate = prepared
    attack = spec.attack.model_dump(mode="json", exclude=set(ATTACK_LABELS))
    poisoned = add("poisoned_set", None, attack, prepared, 1, attack_code)

    model = ""
    for arm, data in ((CLEAN, clean_data), (UNDEFENDED, poisoned)):
        if arm not in spec.arms:
            continue
        tuning = spec.training.fine_tuning
        code = _code(spec.model) if arm == CLEAN and tuning is None else attack_code
        if victim_version and arm == spec.victim_arm:
            # The recipe stays part of the key because repair and detection train by it.
            model = add("victim", arm, {**victim, "brought": victim_version}, poisoned, 0, code)
        elif arm == UNDEFENDED and isinstance(spec.attack, PoisoningAttack) and spec.attack.hands_over:
            # The recipe, for the same reason.
            model = add("victim", arm, {**victim, "handed_over": True}, poisoned, 0, code)
        elif tuning is not None:
            fields = {**victim, "fine_tuning": tuning.model_dump(mode="json")}
            model = add("victim", arm, fields, digest([data, surrogate]), tuning.epochs, code)
        else:
            model = add("victim", arm, victim, data, spec.training.epochs, code)

    for defense in spec.defenses:
        # All others start from the victim: the undefended model, or the clean one if nothing is poisoned.
        parent = digest([poisoned, victim]) if defense.kind == "training" else model
        for kind, fields, epochs in defense.stages():
            # ABL's ranking is the same work for every defense that starts with it.
            owner = "abl" if kind == "isolation" else defense.name
            code = attack_code + _code(defense)
            parent = add(kind, defense.arm_name, [owner, fields], parent, epochs, code)
    return stages


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
