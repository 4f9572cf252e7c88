"""What previews and predictions take and give."""

from typing import Any

from pydantic import BaseModel, Field

from app.specs.attack import AttackSpec, BadNets
from app.specs.base import Spec, field
from app.specs.dataset import DatasetSpec, Digits


class PreviewRequest(Spec):
    """Which trigger to show on which images."""

    dataset: DatasetSpec = field(Digits(), "Data set.")
    attack: AttackSpec = field(BadNets(), "Attack.")
    seed: int = field(0, "Seed of the choice of images.", ge=0, le=2**31 - 1)


class PredictRequest(Spec):
    """Which test image to classify."""

    index: int = field(0, "Place in the test set, counted from 0.", ge=0)
    triggered: bool = field(False, "Put the attack's trigger on the image first.")
    seed: int | None = field(
        None, "Whose models to ask; null: the experiment's first seed.", ge=0, le=2**31 - 1
    )


class ArmPrediction(BaseModel):
    """What one arm's model says."""

    arm: str
    class_: int = Field(alias="class", serialization_alias="class")
    class_name: str
    probabilities: list[float] = Field(description="Of every class, in label order.")


class Prediction(BaseModel):
    """What every arm's model says of the image."""

    image: dict[str, Any] = Field(description="Index and true label, where the image is of the test set.")
    arms: list[ArmPrediction]
    picture: str = Field(description="The image as the models saw it: PNG in base64.")
