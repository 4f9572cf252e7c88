"""The response of the catalog."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.specs.defenses.base import Kind
from app.specs.facts import DatasetFacts


class PresetEntry(BaseModel):
    """A named setting of an attack or a defense."""

    name: str = Field(description="The `preset` in a spec.")
    default: bool = Field(description="Whether it applies if a spec names none.")
    summary: str = Field(description="Whose setting it is, and why to choose it.")
    source: str = Field(description="Where it is published.")
    values: dict[str, Any] = Field(description="The fields that differ from the defaults.")


class Entry(BaseModel):
    """A class of specs that has a name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(description="The `name` in a spec.")
    summary: str = Field(description="One line.")
    description: str = Field(description="The whole documentation.")
    source: str | None = Field(description="Where the method or its defaults come from.")
    schema_: dict[str, Any] = Field(
        alias="schema", description="JSON schema of its fields, with unit and source."
    )
    defaults: dict[str, Any] = Field(description="The default of every field that has one.")
    presets: list[PresetEntry] = Field(description="Its named settings; empty if it has none.")


class DefenseEntry(Entry):
    """A defense."""

    kind: Kind = Field(
        description="What it may use. training: the poisoned set. repair: the trained victim. detection: the "
        "poisoned set and the victim. input_detection: the victim, and the inputs that it "
        "scores. Most methods also use a clean set."
    )


class DatasetEntry(Entry):
    """A dataset; imported ones are listed by their key."""

    key: str | None = Field(None, description="Key of an imported dataset.")
    present: bool | None = Field(
        description="Whether it is on this host; null if this host has no data folder, as the workers may."
    )
    facts: DatasetFacts | None = Field(
        description="Shape, classes, and images per class; null if only its file has them, and it is not present."
    )
    command: str | None = Field(description="The command that downloads or imports it.")


class ModelEntry(Entry):
    """An architecture."""

    present: bool | None = Field(
        description="Whether what it needs is installed; null if this host has no workers."
    )
    command: str | None = Field(description="The command that installs what it needs; null if nothing.")


class Catalog(BaseModel):
    """Everything that a spec can contain."""

    attacks: list[Entry]
    defenses: list[DefenseEntry]
    datasets: list[DatasetEntry]
    models: list[ModelEntry]
    training: list[Entry] = Field(description="The training recipe, and its augmentation.")
