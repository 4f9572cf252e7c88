"""What the catalog answers."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.specs.facts import DatasetFacts


class Entry(BaseModel):
    """One thing that a spec can name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(description="What `name` says in a spec.")
    summary: str = Field(description="One line.")
    description: str = Field(description="All of the documentation.")
    source: str | None = Field(description="Where it, or its defaults, come from.")
    schema_: dict[str, Any] = Field(
        alias="schema", description="JSON schema of its fields, with unit and source."
    )
    defaults: dict[str, Any] = Field(description="Every field that has a default, with it.")


class DatasetEntry(Entry):
    """A data set; imported ones are listed by their key."""

    key: str | None = Field(None, description="An imported set's key.")
    present: bool | None = Field(
        description="Whether it is on this host; null if this host keeps no data, as the workers may."
    )
    facts: DatasetFacts | None = Field(description="Shape, classes, and images of each class.")
    command: str | None = Field(description="The command that gets it.")


class Catalog(BaseModel):
    """Everything that a spec can be made of."""

    attacks: list[Entry]
    defenses: list[Entry]
    datasets: list[DatasetEntry]
    models: list[Entry]
    training: list[Entry] = Field(description="The training recipe, and its augmentation.")
