"""What a spec asks of a victim that the user brings: found at submission, like the rest of `app.specs.checks`."""

from collections.abc import Iterator

from app.specs.base import canonical_json
from app.specs.checks import Problem
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec


def check_victim(
    spec: ExperimentSpec, model: ModelSpec, shape: Shape, stamped: bool, facts: DatasetFacts
) -> list[Problem]:
    """Every way in which the brought ``model``, made for images of that ``shape``, does not fit ``spec``.

    ``facts`` are those of the spec's data set; ``stamped`` models put a patch on every image that they are asked.
    """
    return list(_problems(spec, model, shape, stamped, facts))


def _problems(
    spec: ExperimentSpec, model: ModelSpec, shape: Shape, stamped: bool, facts: DatasetFacts
) -> Iterator[Problem]:
    if spec.model != model:
        yield Problem("model", spec.model.model_dump(mode="json"), f"the victim is a {canonical_json(model)}")
    for name, wanted in shape.model_dump().items():
        if (there := getattr(facts, name)) != wanted:
            yield Problem("dataset", f"{name} {there}", f"the victim was made for {shape}")
            break
    for i, defense in enumerate(spec.defenses):
        if stamped and defense.kind != "training":
            yield Problem(
                f"defenses.{i}.name",
                defense.arm_name,
                "the victim stamps its images, as nab's models do; it can be measured, not repaired or inspected",
            )
