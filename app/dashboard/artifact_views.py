"""An experiment's files as its pages show them: figures with words for those who do not see them, and rankings."""

from collections.abc import Sequence
from typing import NamedTuple

from app.experiments.schemas import ExperimentOut
from app.results.artifacts.schemas import ArtifactOut

TITLES = {
    "samples.png": (
        "What the trigger does",
        "Test images without the trigger of {attack}, with it, and the difference.",
    ),
    "poison.png": (
        "What was put into the training set",
        "Training images before and after {attack} poisoned them, the difference, and the label that each was given.",
    ),
    "predictions.png": (
        "What the models answer",
        "Test images with the trigger of {attack}, and the class that each arm's model gives them; "
        "the table of results counts the same over the whole test set.",
    ),
    "_losses.png": (
        "Losses when isolation ends",
        "Histogram of the training loss of each image under {arm}, clean images against poisoned ones; "
        "those that were set aside are hatched.",
    ),
    "_ranking.png": (
        "How well the ranking finds the poison",
        "Precision against recall over every cut of the ranking of {arm}, and poison found against images taken.",
    ),
    "curves.png": (
        "Training curves",
        "Loss, clean accuracy and attack success of every arm over its epochs, as in the live curves above.",
    ),
    "dataset.png": (
        "The training data",
        "Training images of each class of {dataset}, before any is poisoned.",
    ),
    "results.png": ("The table of results", "The numbers of the table of results above, as a picture."),
}
"""Title and alternative text by the end of a file's name, in the order in which figures are shown."""

CLASSES = "classes"
SUSPICION = ("verdict", "detection", "isolation", CLASSES)
"""Tables that tell what a defense suspected; where it left several, the first of these is its last word."""


class Figure(NamedTuple):
    """A picture and what it shows."""

    artifact: ArtifactOut
    title: str
    alt: str


class Ranking(NamedTuple):
    """The files of one arm and seed that tell what it suspected, by samples, by classes, or both."""

    arm: str
    seed: int
    stage: str
    table: ArtifactOut | None
    sheet: ArtifactOut | None
    classes: ArtifactOut | None
    belief: ArtifactOut | None


class Tab(NamedTuple):
    """A page of an experiment."""

    href: str
    name: str


def figures(files: Sequence[ArtifactOut], experiment: ExperimentOut) -> dict[int | None, list[Figure]]:
    """Every figure by its seed, those of the whole experiment (None) first; those of a seed as in `TITLES`."""
    found: dict[int | None, list[Figure]] = {}
    for file in sorted((f for f in files if f.kind == "figure"), key=_place):
        title, text = next(
            (told for end, told in TITLES.items() if file.name.endswith(end)),
            (
                file.name.rpartition("/")[2].removesuffix(".png").replace("_", " "),
                "A picture that {attack} leaves.",
            ),
        )
        alt = text.format(
            attack=experiment.spec["attack"]["name"],
            dataset=experiment.spec["dataset"]["name"],
            arm=file.arm or "the arm",
        )
        where = f" ({file.arm})" if file.arm and file.arm != "attack" else ""
        found.setdefault(file.seed, []).append(Figure(file, title + where, alt))
    return found


def _place(file: ArtifactOut) -> tuple[bool, int, int]:
    """Where a figure is shown: its seed, then its kind."""
    kind = next((number for number, end in enumerate(TITLES) if file.name.endswith(end)), len(TITLES))
    return file.seed is not None, file.seed or 0, kind


def rankings(files: Sequence[ArtifactOut]) -> list[Ranking]:
    """What defenses suspected, in the order of arm and seed; of several stages the last comes first."""
    by_name = {file.name: file for file in files}
    found: dict[tuple[str, int, str], Ranking] = {}
    for file in files:
        folder, _, name = file.name.rpartition("/")
        stage = name.removesuffix(".csv")
        if file.arm is None or file.seed is None or stage not in SUSPICION:
            continue
        by_class = stage == CLASSES
        found[file.arm, file.seed, stage] = Ranking(
            file.arm,
            file.seed,
            stage,
            None if by_class else file,
            None if by_class else by_name.get(f"{folder}/{stage}_images.png"),
            by_name.get(f"{folder}/{CLASSES}.csv"),
            by_name.get(f"{folder}/belief.json"),
        )
    told = {(arm, seed) for arm, seed, stage in found if stage != CLASSES}
    kept = [r for r in found.values() if r.table is not None or (r.arm, r.seed) not in told]
    return sorted(kept, key=lambda r: (r.arm, r.seed, SUSPICION.index(r.stage)))


def models(files: Sequence[ArtifactOut]) -> list[int]:
    """The seeds that have a trained model to ask."""
    return sorted({f.seed for f in files if f.name.endswith("/model.safetensors") and f.seed is not None})


def tabs(experiment: ExperimentOut, files: Sequence[ArtifactOut]) -> list[Tab]:
    """The pages that an experiment has, as far as it has come."""
    here = f"/experiments/{experiment.id}"
    found = [Tab(here, "Overview")]
    if models(files):
        found.append(Tab(f"{here}/explore", "Predictions"))
    if rankings(files):
        found.append(Tab(f"{here}/isolation", "Isolation"))
    return found
