"""Stored specs as data, readable even if the plug-in that defined their attack or a defense is gone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, ValidationError, WrapValidator

from app.specs.attack import AttackSpec
from app.specs.defense import DefenseSpec
from app.specs.experiment import ExperimentSpec, arm_names
from app.specs.plugins import VARIABLE, member_names


class MissingPluginError(ValueError):
    """A stored spec names an attack or a defense that neither this package nor a plug-in defines."""


@dataclass(frozen=True)
class StoredSpec:
    """A view of a stored spec, which has every default of its time written out. Nothing is validated."""

    document: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.document.get("name", ""))

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.document.get("tags", {}))

    @property
    def priority(self) -> int:
        return int(self.document.get("priority", 0))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.document["seeds"])

    @property
    def dataset_name(self) -> str:
        return str(self.document["dataset"]["name"])

    @property
    def model_name(self) -> str:
        return str(self.document["model"]["name"])

    @property
    def attack_name(self) -> str:
        return str(self.document["attack"]["name"])

    @property
    def defenses(self) -> dict[str, dict[str, Any]]:
        """The fields of each defense, by arm name."""
        return {fields.get("arm") or fields["name"]: fields for fields in self.document["defenses"]}

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the order in which results list them."""
        return arm_names(self.attack_name, bool(self.document.get("reference")), self.defenses)

    def missing_plugins(self) -> list[str]:
        """Names of the attack and the defenses that no class defines any more."""
        defenses = {str(fields["name"]) for fields in self.defenses.values()}
        return sorted(
            ({self.attack_name} - member_names(AttackSpec)) | (defenses - member_names(DefenseSpec))
        )

    def parse(self) -> ExperimentSpec:
        """The spec as a model, to plan or run it. Raises MissingPluginError, or ValidationError for other reasons."""
        try:
            return ExperimentSpec.model_validate(self.document)
        except ValidationError as error:
            missing = self.missing_plugins()
            if not missing:
                raise
            raise MissingPluginError(
                f"no plug-in defines {', '.join(missing)}; put its file back into the folder that {VARIABLE} names"
            ) from error


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` with the fields that were added since, in the order of the classes.

    It is returned as it is if the classes are gone or no longer accept it.
    """
    try:
        return ExperimentSpec.model_validate(document).model_dump(mode="json")
    except ValidationError:
        return document


if TYPE_CHECKING:
    SpecDocument = dict[str, Any]
else:
    SpecDocument = Annotated[
        ExperimentSpec,
        WrapValidator(lambda document, _validate: completed(document)),
        PlainSerializer(lambda document: document),
    ]
"""The type of a response field that returns a stored spec, `completed`. OpenAPI shows it as `ExperimentSpec`."""
