"""Stored specs as data, readable even if the plug-in that defined one of their parts is gone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, PlainSerializer, ValidationError, WrapValidator

from app.specs.attack import AttackSpec
from app.specs.base import member_names
from app.specs.defense import DefenseSpec
from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec, arm_names
from app.specs.model import ModelSpec
from app.specs.plugins import VARIABLE
from app.specs.study import StudySpec


class MissingPluginError(ValueError):
    """A stored spec names an attack, a defense or an architecture that neither this package nor a plug-in defines."""


@dataclass(frozen=True)
class _StoredDocument:
    """A view of a stored spec, which has every default of its time written out. Nothing is validated."""

    document: dict[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.document["seeds"])

    @property
    def attack_names(self) -> set[str]:
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        return str(self.document["model"]["name"])

    @property
    def defenses(self) -> dict[str, dict[str, Any]]:
        """The fields of each defense, by arm name."""
        return {fields.get("arm") or fields["name"]: fields for fields in self.document["defenses"]}

    def missing_plugins(self) -> list[str]:
        """Names of the attacks, the defenses and the architecture that no class defines any more."""
        defenses = {str(fields["name"]) for fields in self.defenses.values()}
        missing = self.attack_names - member_names(AttackSpec) | defenses - member_names(DefenseSpec)
        return sorted(missing | {self.model_name} - member_names(ModelSpec))

    def require_plugins(self) -> None:
        """Raises MissingPluginError."""
        if missing := self.missing_plugins():
            raise MissingPluginError(
                f"no plug-in defines {', '.join(missing)}; put its file back into the folder that {VARIABLE} names"
            )


class StoredSpec(_StoredDocument):
    """A view of an experiment's stored spec."""

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
    def dataset_name(self) -> str:
        return str(self.document["dataset"]["name"])

    @property
    def attack_name(self) -> str:
        return str(self.document["attack"]["name"])

    @property
    def attack_names(self) -> set[str]:
        return {self.attack_name}

    @property
    def arms(self) -> tuple[str, ...]:
        """Arm names in the order in which results list them."""
        return arm_names(self.attack_name, bool(self.document.get("reference")), self.defenses)

    def parse(self) -> ExperimentSpec:
        """The spec as a model, to plan or run it. Raises MissingPluginError."""
        self.require_plugins()
        return ExperimentSpec.model_validate(self.document)


class StoredStudy(_StoredDocument):
    """A view of a study's stored spec."""

    @property
    def rows(self) -> dict[str, str]:
        """The attack's name of each row of the table, by the row's name."""
        attacks = ((row.get("label"), row["attack"]["name"]) for row in self.document["attacks"])
        return {label or name: name for label, name in attacks}

    @property
    def attack_names(self) -> set[str]:
        return set(self.rows.values())

    @property
    def arms(self) -> list[str]:
        """Arm names in the order of the table's columns."""
        clean = [CLEAN] if self.document.get("reference", True) or "none" in self.attack_names else []
        undefended = [UNDEFENDED] if self.attack_names != {"none"} else []
        return [*clean, *undefended, *self.defenses]

    def parse(self) -> StudySpec:
        """The spec as a model, to extend it. Raises MissingPluginError."""
        self.require_plugins()
        return StudySpec.model_validate(self.document)


def dataset_label(dataset: dict[str, Any]) -> str:
    """Name of a dataset in lists and on the leaderboard; with the key or id of an imported or uploaded dataset."""
    key = dataset.get("key") or dataset.get("dataset_id")
    return f"{dataset['name']}/{key}" if key else str(dataset["name"])


def completed(document: dict[str, Any], model: type[BaseModel] = ExperimentSpec) -> dict[str, Any]:
    """``document`` with the fields that were added since, in the order of the classes.

    It is returned as it is if the classes are gone or no longer accept it.
    """
    try:
        return model.model_validate(document).model_dump(mode="json")
    except ValidationError:
        return document


if TYPE_CHECKING:
    SpecDocument = dict[str, Any]
    StudyDocument = dict[str, Any]
else:

    def _document_of(model: type[BaseModel]) -> Any:
        return Annotated[
            model,
            WrapValidator(lambda document, _validate: completed(document, model)),
            PlainSerializer(lambda document: document),
        ]

    SpecDocument, StudyDocument = _document_of(ExperimentSpec), _document_of(StudySpec)
"""The types of response fields that return a stored spec, `completed`. OpenAPI shows them as `ExperimentSpec` and
`StudySpec`."""
