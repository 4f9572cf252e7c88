"""What the leaderboard shows."""

from pydantic import BaseModel, Field

from app.results.numbers.schemas import Aggregate


class Cell(BaseModel):
    """One attack against one defense, as measured here: of all settings of the pair the one with the most seeds."""

    attack: str
    defense: str = Field(description="`undefended` is the attacked model itself.")
    setting: str = Field(description="Equal for results that differ in nothing but the seed.")
    poisoning_rate: float | None = Field(
        description="Of the whole training set or of the target class, see the spec."
    )
    seeds: int = Field(
        description="Seeds that the numbers come from; each counts once, by its newest experiment."
    )
    clean_accuracy: Aggregate | None
    attack_success_rate: Aggregate | None
    defense_effectiveness: Aggregate | None = Field(
        description="(max(0, ASR drop) - max(0, CA drop) + 1) / 2 against the undefended arm of the same "
        "experiment and seed; one half is doing nothing."
    )
    experiments: list[str] = Field(description="Ids of the experiments that the numbers come from.")
    results: str = Field(description="Link to the rows of this setting.")


class PublishedCell(BaseModel):
    """One attack against one defense, as somebody published it. Not measured here."""

    attack: str
    defense: str
    model: str = Field(description="The network of the publication, which may be another one.")
    poisoning_rate: float
    clean_accuracy: float
    attack_success_rate: float
    defense_effectiveness: float | None
    source: str = Field(description="Key into `sources`.")


class BoardName(BaseModel):
    """A data set and a model that there are results of."""

    dataset: str
    model: str


class Leaderboard(BaseModel):
    """Attacks against defenses on one data set and model."""

    dataset: str
    model: str
    poisoning_rate: float | None
    attacks: list[str]
    defenses: list[str]
    cells: list[Cell]
    published: list[PublishedCell]
    sources: dict[str, str]
    boards: list[BoardName] = Field(description="What else there are results of; at most 100.")


class Point(BaseModel):
    """A defense between accuracy and safety."""

    defense: str
    setting: str
    clean_accuracy: float
    attack_failure_rate: float = Field(description="1 - attack success rate.")
    seeds: int
    on_front: bool = Field(
        description="Whether no other point is at least as good in both and better in one."
    )


class Front(BaseModel):
    """The points of one attack, the most accurate first."""

    attack: str
    points: list[Point]


class Fronts(BaseModel):
    """Pareto fronts of clean accuracy and 1 - attack success rate."""

    dataset: str
    model: str
    poisoning_rate: float | None
    fronts: list[Front]
