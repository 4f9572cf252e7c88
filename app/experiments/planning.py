"""The one way from a spec to its work: resolve what it refers to, check it against that, plan its stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.core.context import Context
from app.core.errors import ConflictError, InvalidError
from app.core.validation import FieldError, shown
from app.data.resolve import Inputs, resolve
from app.specs.checks import find_problems, find_victim_problems
from app.specs.experiment import ATTACK, ExperimentSpec
from app.specs.facts import DatasetFacts, Shape
from app.specs.stages import PlannedStage, arm_keys, plan
from app.specs.stored import MissingPluginError, StoredSpec
from app.specs.training import Precision
from app.tables.experiments import Experiment

StoredStage = dict[str, Any]
"""A stage as `Experiment.stages` holds it: kind, arm, seed, key."""

AutoPrecision = Callable[[Shape], Precision]


@dataclass(frozen=True)
class PlannedExperiment:
    """A spec, facts of its dataset, its stages, and the content address of the numbers of each arm and seed."""

    spec: ExperimentSpec
    facts: DatasetFacts
    stages: tuple[PlannedStage, ...]
    arm_keys: Mapping[tuple[str, int], str]

    @property
    def stored_stages(self) -> list[StoredStage]:
        return [{"kind": s.kind, "arm": s.arm, "seed": s.seed, "key": s.key} for s in self.stages]

    def restrict(self, spec: ExperimentSpec) -> "PlannedExperiment":
        """The plan of ``spec``, which differs from this one's only in that it has fewer seeds and arms."""
        arms = {None, ATTACK, *spec.arms}
        return replace(
            self,
            spec=spec,
            stages=tuple(s for s in self.stages if s.seed in spec.seeds and s.arm in arms),
            arm_keys={(arm, seed): self.arm_keys[arm, seed] for arm in spec.arms for seed in spec.seeds},
        )


def plan_experiment(context: Context, spec: ExperimentSpec) -> PlannedExperiment:
    """Resolve, check and plan ``spec``. Raises InvalidError that names each wrong field."""
    with context.database.reading() as session:
        inputs = resolve(session, spec, context.settings.datasets)
    _check(spec, inputs)
    return _plan(spec, inputs)


def plan_again(
    session: Session, spec: ExperimentSpec, folder: Path, auto_precision: AutoPrecision | None = None
) -> PlannedExperiment:
    """Plan a spec that was checked when it was submitted; ``folder`` is the data folder.

    ``auto_precision`` says what the precision `auto` stands for on this machine, for images of a shape. Without it,
    float32: the service plans without knowing which processor a worker has, and a worker corrects the plan. Raises
    InvalidError if what the spec refers to is gone.
    """
    return _plan(spec, resolve(session, spec, folder), auto_precision)


def stages_of(session: Session, experiment: Experiment, folder: Path) -> list[StoredStage]:
    """The stages of a stored experiment; those from before revision 0016 are planned.

    Raises InvalidError and ConflictError if these cannot be planned.
    """
    if experiment.stages is not None:
        return experiment.stages
    return plan_again(session, runnable_spec(experiment), folder).stored_stages


def runnable_spec(experiment: Experiment) -> ExperimentSpec:
    """The spec of a stored experiment. Raises ConflictError if it can only be read, not run: a plug-in is missing."""
    try:
        return StoredSpec(experiment.spec).parse()
    except MissingPluginError as error:
        raise ConflictError(f"the experiment cannot run: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ConflictError(f"the experiment cannot run: its spec is no longer valid: {reason}") from error


def _check(spec: ExperimentSpec, inputs: Inputs) -> None:
    errors = [
        FieldError(field=field, value=shown(text), message="the character U+0000 cannot be stored")
        for field, text in [("name", spec.name), *((f"tags.{k}", v) for k, v in spec.tags.items())]
        if "\0" in text
    ]
    facts, victim = inputs.dataset.facts, inputs.victim
    problems = find_problems(spec, facts)
    if victim is not None:
        problems += find_victim_problems(spec, victim.model, victim.shape, victim.stamped, facts)
    errors += [
        FieldError(field=p.field, value=shown(p.value), message=f"allowed: {p.allowed}") for p in problems
    ]
    if errors:
        raise InvalidError.of_all(errors)


def _plan(
    spec: ExperimentSpec, inputs: Inputs, auto_precision: AutoPrecision | None = None
) -> PlannedExperiment:
    victim_version = inputs.victim.sha256 if inputs.victim is not None else ""
    precision = auto_precision(inputs.dataset.facts.shape) if auto_precision else "float32"
    stages = plan(spec, inputs.dataset.version, victim_version, precision)
    return PlannedExperiment(spec, inputs.dataset.facts, tuple(stages), arm_keys(spec, stages))
