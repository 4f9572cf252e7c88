"""Responses of the leaderboard routes."""

from pydantic import BaseModel, Field

from app.results.numbers.schemas import Aggregate

METRICS = ("clean_accuracy", "attack_success_rate", "defense_effectiveness")


class Cell(BaseModel):
    """One attack against one defense, measured here: the setting of this pair that has the most seeds."""

    attack: str
    defense: str = Field(description="`undefended` is the attacked model without a defense.")
    setting: str = Field(description="Equal for results that differ only in the seed.")
    poisoning_rate: float | None = Field(
        description="Fraction of the training set or of the target class, depending on the attack."
    )
    seeds: int = Field(description="Number of seeds; for each seed the newest experiment counts.")
    clean_accuracy: Aggregate | None
    attack_success_rate: Aggregate | None
    defense_effectiveness: Aggregate | None = Field(
        description="(max(0, ASR drop) - max(0, CA drop) + 1) / 2 relative to the undefended arm of the same "
        "experiment and seed; 0.5 is the rating of no defense."
    )
    experiments: list[str] = Field(description="Ids of the experiments that the numbers come from.")
    results: str = Field(description="Link to the results of this setting.")


class PublishedCell(BaseModel):
    """One attack against one defense as published, not measured here."""

    attack: str
    defense: str
    model: str = Field(description="The network of the publication, which may differ from the requested one.")
    poisoning_rate: float
    clean_accuracy: float
    attack_success_rate: float
    defense_effectiveness: float | None
    source: str = Field(description="Key in `sources`.")


class BoardName(BaseModel):
    """A dataset and a model that have results."""

    dataset: str
    model: str


class Leaderboard(BaseModel):
    """Attacks against defenses on one dataset and model."""

    dataset: str
    model: str
    poisoning_rate: float | None
    attacks: list[str]
    defenses: list[str]
    cells: list[Cell]
    published: list[PublishedCell]
    sources: dict[str, str]
    boards: list[BoardName] = Field(description="Datasets and models that have results; at most 100.")


class Point(BaseModel):
    """A defense as a point of accuracy and safety."""

    defense: str
    setting: str
    clean_accuracy: float
    attack_failure_rate: float = Field(description="1 - attack success rate.")
    seeds: int
    on_front: bool = Field(
        description="Whether no other point is at least as good in both values and better in one."
    )


class Front(BaseModel):
    """The points of one attack, sorted by descending accuracy."""

    attack: str
    points: list[Point]


class Fronts(BaseModel):
    """Pareto fronts of clean accuracy and 1 - attack success rate."""

    dataset: str
    model: str
    poisoning_rate: float | None
    fronts: list[Front]
