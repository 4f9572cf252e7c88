"""Views of an experiment's artifacts: figures with titles and alternative texts, rankings, and tabs."""

from collections.abc import Sequence
from typing import NamedTuple

from app.experiments.schemas import ExperimentOut
from app.results.artifacts.schemas import ArtifactOut
from app.specs.experiment import ATTACK

TITLES = {
    "samples.png": ("Trigger", "Test images without the trigger of {attack}, with it, and the difference."),
    "poison.png": (
        "Poisoned training images",
        "Training images before and after {attack} poisoned them, the difference, and the assigned labels.",
    ),
    "given.png": (
        "The attacker's images",
        "Training images that {dataset} marks as poisoned, and its test images with the trigger, where it has them.",
    ),
    "predictions.png": (
        "Predictions",
        "Test images with the trigger of {attack}, and the class that each arm's model predicts for them; "
        "the results table covers the whole test set.",
    ),
    "_losses.png": (
        "Losses at isolation",
        "Histogram of the training loss of each image under {arm}, clean against poisoned images; "
        "isolated images are hatched.",
    ),
    "_ranking.png": (
        "Quality of the ranking",
        "Precision against recall at every cut of the ranking of {arm}, "
        "and poisoned images found against images isolated.",
    ),
    "inputs.png": (
        "Suspicion of test images",
        "Histogram of the suspicion that {arm} gives clean and triggered test images; the line is its threshold.",
    ),
    "curves.png": (
        "Training curves",
        "Loss, clean accuracy and attack success of every arm by epoch, as in the live curves above.",
    ),
    "dataset.png": ("Training data", "Training images of each class of {dataset}, before poisoning."),
    "results.png": ("Results table", "The results table above, as a picture."),
}
"""Title and alternative text by the end of a file's name, in the order in which figures are shown."""

CLASSES = "classes"
SUSPICION = ("verdict", "detection", "isolation", CLASSES)
"""Stages whose tables contain what a defense suspected, in order of precedence."""


class Figure(NamedTuple):
    """A figure with its title and alternative text."""

    artifact: ArtifactOut
    title: str
    alt: str


class Ranking(NamedTuple):
    """The files with what one arm and seed suspected: samples, classes, or both."""

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
    """The figures by seed, in the order of `TITLES`; first those of the whole experiment, whose seed is None."""
    by_seed: dict[int | None, list[Figure]] = {}
    for file in sorted((f for f in files if f.kind == "figure"), key=_sort_key):
        name = file.name.rpartition("/")[2].removesuffix(".png").replace("_", " ")
        default = (name, "A figure of {attack}.")
        title, text = next((texts for end, texts in TITLES.items() if file.name.endswith(end)), default)
        alt = text.format(
            attack=experiment.spec["attack"]["name"],
            dataset=experiment.spec["dataset"]["name"],
            arm=file.arm or "the arm",
        )
        suffix = f" ({file.arm})" if file.arm and file.arm != ATTACK else ""
        by_seed.setdefault(file.seed, []).append(Figure(file, title + suffix, alt))
    return by_seed


def _sort_key(file: ArtifactOut) -> tuple[bool, int, int]:
    """By seed, then by kind of figure."""
    kind = next((number for number, end in enumerate(TITLES) if file.name.endswith(end)), len(TITLES))
    return file.seed is not None, file.seed or 0, kind


def rankings(files: Sequence[ArtifactOut]) -> list[Ranking]:
    """What defenses suspected, by arm and seed; of several stages the last comes first."""
    by_name = {file.name: file for file in files}
    by_stage: dict[tuple[str, int, str], Ranking] = {}
    for file in files:
        folder, _, name = file.name.rpartition("/")
        stage = name.removesuffix(".csv")
        if file.arm is None or file.seed is None or stage not in SUSPICION:
            continue
        by_class = stage == CLASSES
        by_stage[file.arm, file.seed, stage] = Ranking(
            file.arm,
            file.seed,
            stage,
            None if by_class else file,
            None if by_class else by_name.get(f"{folder}/{stage}_images.png"),
            by_name.get(f"{folder}/{CLASSES}.csv"),
            by_name.get(f"{folder}/belief.json"),
        )
    with_samples = {(arm, seed) for arm, seed, stage in by_stage if stage != CLASSES}
    # A ranking of samples includes the classes too.
    shown = [r for r in by_stage.values() if r.table is not None or (r.arm, r.seed) not in with_samples]
    return sorted(shown, key=lambda r: (r.arm, r.seed, SUSPICION.index(r.stage)))


def model_seeds(files: Sequence[ArtifactOut]) -> list[int]:
    """The seeds that have a trained model, which can predict."""
    return sorted({f.seed for f in files if f.name.endswith("/model.safetensors") and f.seed is not None})


def tabs(experiment: ExperimentOut, files: Sequence[ArtifactOut]) -> list[Tab]:
    """The pages for which an experiment has artifacts so far."""
    path = f"/experiments/{experiment.id}"
    pages = [Tab(path, "Overview")]
    if model_seeds(files):
        pages.append(Tab(f"{path}/explore", "Predictions"))
    if rankings(files):
        pages.append(Tab(f"{path}/isolation", "Isolation"))
    return pages
