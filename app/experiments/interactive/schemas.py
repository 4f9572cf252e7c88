"""Requests and responses of previews and predictions."""

from typing import Any

from pydantic import BaseModel, Field

from app.specs.attack import AttackSpec, BadNets
from app.specs.base import Spec, field
from app.specs.dataset import DatasetSpec, Digits


class PreviewRequest(Spec):
    """Which trigger to show on which images."""

    dataset: DatasetSpec = field(Digits(), "Dataset.")
    attack: AttackSpec = field(BadNets(), "Attack.")
    seed: int = field(0, "Seed of the choice of images.", ge=0, le=2**31 - 1)


class PredictRequest(Spec):
    """Which test image to classify."""

    index: int = field(0, "Index in the test set, counted from 0.", ge=0)
    triggered: bool = field(False, "Add the attack's trigger to the image first.")
    seed: int | None = field(
        None, "Seed whose models answer; null: the experiment's first seed.", ge=0, le=2**31 - 1
    )


class InputVerdict(BaseModel):
    """What an input detection says about the image."""

    suspicion: float = Field(description="Higher is more suspicious; the unit is the method's.")
    threshold: float = Field(description="The suspicion from which an image is flagged.")
    flagged: bool = Field(description="Whether the image is taken for a triggered one.")


class ArmPrediction(BaseModel):
    """The answer of one arm's model."""

    arm: str
    class_: int = Field(alias="class", serialization_alias="class")
    class_name: str
    probabilities: list[float] = Field(description="One for each class, in label order.")
    detection: InputVerdict | None = Field(
        None, description="The verdict of the arm's input detection; null for arms with another defense."
    )


class Prediction(BaseModel):
    """The answers of all arms' models for one image."""

    image: dict[str, Any] = Field(description="Index and true label, if it is a test image.")
    arms: list[ArmPrediction]
    picture: str = Field(description="The input of the models: PNG in base64.")
