"""Requests and responses of the upload routes."""

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
    """The metadata of every file."""

    name: str = field("", "A name for people. Empty: the name of the file.", max_length=200)
    sha256: str | None = field(
        None,
        "SHA-256 of the file in hexadecimal; the upload is refused if it differs.",
        pattern=SHA256,
    )


class ModelMetadata(Metadata):
    """The metadata of a model. A checkpoint that this service exported describes itself and needs none."""

    model: ModelSpec | None = field(None, "The architecture. Null: as in the header of the file.")
    dataset: DatasetSpec | None = field(
        None, "A dataset with images like those that it classifies; or give `shape`."
    )
    shape: Shape | None = field(None, "Shape of the images that it classifies; or give `dataset`.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.dataset is not None and self.shape is not None:
            raise ValueError("give dataset or shape, not both")
        if (self.model is None) != (self.dataset is None and self.shape is None):
            raise ValueError("model and one of dataset and shape belong together; give both or neither")
        return self


class DatasetMetadata(Metadata):
    """The metadata of a dataset; the same as the options of `bdlab data import`."""

    format: Format | None = field(None, "Null: the extension of the file name.")
    test_fraction: float | None = field(
        None,
        "Use this share of every class as test images; required if the file has none, else not allowed.",
        unit="fraction",
        gt=0,
        lt=1,
    )
    split_seed: int = field(0, "Seed of that split.", ge=0, le=2**31 - 1)
    size: int | None = field(
        None, "Resize pictures to this width and height; not for npz.", unit="pixels", ge=1, le=1024
    )
    zip_encoding: str | None = field(
        None,
        "Encoding of names in a zip that are not in UTF-8, such as gbk or shift_jis; only for a zip.",
        max_length=40,
        added_later=True,
    )


class UploadOut(BaseModel):
    """Fields that models and datasets share."""

    id: str
    name: str
    status: Status = Field(description="pending until a worker has checked the file, then ready or refused.")
    reason: str | None = Field(description="Why it was refused.")
    size: int = Field(description="Size of the file in bytes.")
    sha256: str = Field(description="SHA-256 of the file.")
    created_at: datetime
    checked_at: datetime | None


class ModelOut(UploadOut):
    """A model. In a spec: `"victim": {"model_id": ID}`."""

    model: ModelSpec | None = Field(description="The architecture; null until it is known.")
    shape: Shape | None = Field(description="Shape of the images that it classifies; null until it is known.")
    parameters: int | None = Field(description="Number of parameters; null until it is ready.")
    mapped: str | None = Field(
        description="What was renamed, converted or added to use the file; null if nothing was, or it is not ready."
    )
    labels: dict[str, str] = Field(
        description="From the header of a checkpoint of this service: arm, seed, and whether it is backdoored."
    )


class DatasetOut(UploadOut):
    """A dataset."""

    dataset: Uploaded = Field(description="How a spec names it.")
    facts: DatasetFacts | None = Field(
        description="Shape, classes, images per class; null until it is ready."
    )
    version: str | None = Field(description="SHA-256 of images and labels; null until it is ready.")
    notes: list[str] = Field(description="What of the file is not used, one line each.")


class Models(BaseModel):
    """One page of models."""

    models: list[ModelOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


class Datasets(BaseModel):
    """One page of datasets."""

    datasets: list[DatasetOut]
    next: str | None = Field(description="Link to the next page; null on the last.")


def example(metadata: dict[str, Any], model: type[Metadata]) -> dict[str, Any]:
    """The OpenAPI request body of a form with ``metadata`` and a file."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # components already, because the responses use them
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
