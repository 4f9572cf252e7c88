"""Which stages an experiment is made of, and the content-address of each.

A stage's stream is a hash over its kind, the part of the spec it depends on, its parent's stream and the seed; its
randomness follows from that. Its key is the stream with the lab's version. Equal keys mean equal work, whoever asks
for it; so stages are shared between arms, experiments and workers.
"""

from typing import Any, NamedTuple

from app.specs.attack import NoAttack
from app.specs.base import Spec, digest
from app.specs.experiment import ATTACK, CLEAN, UNDEFENDED, ExperimentSpec

LAB_VERSION = 5
"""Raise this whenever the same spec and seed would give other numbers than before, be it in their last bits. Finished
stages are then computed anew, on the same random streams."""
STREAMS = 1
"""Raising this would give every stage other random numbers."""


class PlannedStage(NamedTuple):
    """One stage of one arm and seed. ``arm`` is None for the poisoned set, which the arms share, and
    "attack" for what the attack computes before it."""

    kind: str
    arm: str | None
    seed: int
    stream: str
    epochs: int
    """Expected work in training epochs, for progress; the real number may be smaller."""
    code: tuple[str, ...] = ()
    """Digests of the plug-ins that had a hand in it: they may change while the lab's version stays."""

    @property
    def key(self) -> str:
        return digest([LAB_VERSION, self.stream, *self.code])


def plan(spec: ExperimentSpec, data_version: str = "", victim_version: str = "") -> list[PlannedStage]:
    """Every stage of ``spec``, in the order in which a worker computes them.

    ``data_version`` is the digest of an imported or uploaded data set's content; sets with a name of their own need
    none. ``victim_version`` is the SHA-256 of the file of a victim that the user brings; empty if it is trained.
    """
    stages: list[PlannedStage] = []
    # An upload's id decides nothing; its content does.
    dataset = {
        "dataset": spec.dataset.model_dump(mode="json", exclude={"dataset_id"}),
        "version": data_version,
    }
    victim = {"model": spec.model.model_dump(mode="json"), "training": spec.training.model_dump(mode="json")}
    attackers_recipe = {
        "model": victim["model"],
        "training": spec.training.model_dump(mode="json", exclude={"epochs"}),
    }
    for seed in spec.seeds:

        def add(
            kind: str,
            arm: str | None,
            depends_on: Any,
            parent: str,
            epochs: int,
            code: tuple[str, ...] = (),
            seed: int = seed,
        ) -> str:
            stream = digest([STREAMS, kind, depends_on, parent, seed])
            stages.append(PlannedStage(kind, arm, seed, stream, epochs, code))
            return stream

        clean_data = digest(["data", dataset, seed])
        prepared = clean_data
        attack_code = _code(spec.attack)
        if not isinstance(spec.attack, NoAttack):
            for kind, fields, epochs in spec.attack.stages():
                # Neither the attack's name nor the victim's epochs: attacks that need the same model share it.
                prepared = add(kind, ATTACK, [fields, attackers_recipe], prepared, epochs, attack_code)
        attack = spec.attack.model_dump(mode="json", exclude={"export"})
        poisoned = add("poisoned_set", None, attack, prepared, 1, attack_code)
        model = ""
        for arm, data in ((CLEAN, clean_data), (UNDEFENDED, poisoned)):
            if arm not in spec.arms:
                continue
            code = () if arm == CLEAN else attack_code
            if victim_version and arm == spec.victim_arm:
                # The recipe stays in the key, because repair and detection inherit it from there.
                model = add("victim", arm, {**victim, "brought": victim_version}, poisoned, 0, code)
            else:
                model = add("victim", arm, victim, data, spec.training.epochs, code)
        for defense in spec.defenses:
            # Repair and detection start from the victim: the undefended one, or the clean one if nothing is poisoned.
            parent = digest([poisoned, victim]) if defense.kind == "training" else model
            for kind, fields, epochs in defense.stages():
                # ABL's ranking is the same work for every defense that begins with it.
                owner = "abl" if kind == "isolation" else defense.name
                code = attack_code + _code(defense)
                parent = add(kind, defense.arm_name, [owner, fields], parent, epochs, code)
    return stages


def _code(part: Spec) -> tuple[str, ...]:
    return (part.code,) if part.code else ()


def arm_keys(spec: ExperimentSpec, stages: list[PlannedStage]) -> dict[tuple[str, int], str]:
    """For each arm and seed the content-address of its numbers, given the `plan` of ``spec``.

    Two arms with equal keys have equal numbers, in whatever experiments they are and whatever they are called:
    the same defense, on the same poisoned set, victim and seed, computed on the same device.
    """
    poisoned = {stage.seed: stage.key for stage in stages if stage.kind == "poisoned_set"}
    last = {
        (stage.arm, stage.seed): stage.key for stage in stages
    }  # an arm's later stages replace its earlier ones
    defenses = {d.arm_name: d.model_dump(mode="json", exclude={"arm"}) for d in spec.defenses}
    return {
        (arm, seed): digest(["arm", spec.device, poisoned[seed], last[arm, seed], defenses.get(arm)])
        for seed in spec.seeds
        for arm in spec.arms
    }
