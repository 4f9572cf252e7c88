"""What the upload routes take and give."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.specs.base import Spec, field
from app.specs.dataset import DatasetSpec, Uploaded
from app.specs.facts import DatasetFacts, Shape
from app.specs.model import ModelSpec

Status = Literal["pending", "ready", "refused"]
Format = Literal["npz", "zip", "parquet"]
SHA256 = r"^[0-9a-f]{64}$"


class Metadata(Spec):
    """What comes with every file."""

    name: str = field("", "A name for people. Empty: the file's.", max_length=200)
    sha256: str | None = field(
        None, "The file's SHA-256 in hexadecimal; the upload is refused if another arrives.", pattern=SHA256
    )


class ModelMetadata(Metadata):
    """What comes with a model. A checkpoint that this service exported says itself what it is, and needs none of it."""

    model: ModelSpec | None = field(None, "The architecture. Null: as the file's header says.")
    dataset: DatasetSpec | None = field(
        None, "A data set with the images that it classifies; or give `shape`."
    )
    shape: Shape | None = field(None, "Of the images that it classifies; or give `dataset`.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.dataset is not None and self.shape is not None:
            raise ValueError("give dataset or shape, not both")
        if (self.model is None) != (self.dataset is None and self.shape is None):
            raise ValueError("model and one of dataset and shape belong together; give both or neither")
        return self


class DatasetMetadata(Metadata):
    """What comes with a data set; the same as the options of `bdlab data import`."""

    format: Format | None = field(None, "Null: as the file's name ends.")
    test_fraction: float | None = field(
        None,
        "Split off this share of every class as test images; needed where the file has none, else not allowed.",
        unit="fraction",
        gt=0,
        lt=1,
    )
    split_seed: int = field(0, "Seed of that split.", ge=0, le=2**31 - 1)
    size: int | None = field(
        None, "Resize pictures to so many pixels a side; not for npz.", unit="pixels", ge=1, le=1024
    )


class UploadOut(BaseModel):
    """What models and data sets have in common."""

    id: str
    name: str
    status: Status = Field(description="pending until a worker has checked the file, then ready or refused.")
    reason: str | None = Field(description="Why it was refused.")
    size: int = Field(description="Bytes of the file.")
    sha256: str = Field(description="Of the file.")
    created_at: datetime
    checked_at: datetime | None


class ModelOut(UploadOut):
    """A model. In a spec: `"victim": {"model_id": ID}`."""

    model: ModelSpec | None = Field(description="The architecture; null until it is known.")
    shape: Shape | None = Field(description="Of the images that it classifies; null until it is known.")
    parameters: int | None = Field(description="How many numbers it learned; null until it is ready.")
    labels: dict[str, str] = Field(
        description="What a checkpoint of this service says of itself: arm, seed, backdoored, and of which experiment."
    )


class DatasetOut(UploadOut):
    """A data set."""

    dataset: Uploaded = Field(description="How a spec names it.")
    facts: DatasetFacts | None = Field(description="Shape, classes, images of each; null until it is ready.")
    version: str | None = Field(description="SHA-256 of images and labels; null until it is ready.")


class Models(BaseModel):
    """One page of models."""

    models: list[ModelOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class Datasets(BaseModel):
    """One page of data sets."""

    datasets: list[DatasetOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


def example(metadata: dict[str, Any], model: type[Metadata]) -> dict[str, Any]:
    """The documentation of a form with ``metadata`` and a file."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # they are components, because the answers have them too
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"metadata": schema, "file": {"type": "string", "format": "binary"}},
    }
    content = {
        "schema": form,
        "encoding": {"metadata": {"contentType": "application/json"}},
        "examples": {"example": {"value": {"metadata": metadata, "file": "(bytes)"}}},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}
