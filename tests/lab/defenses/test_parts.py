"""Functions of the defenses against values computed by hand."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from app.specs.checks import find_problems
from app.specs.defenses.detection import ActivationClustering, SpectralSignatures, Strip
from app.specs.defenses.repair import Anp, FinePruning, FineTuning, FtSam, IBau, Mcr, Nad
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from app.specs.model import SmallCnn, WideResNet16x1
from tests.lab.defenses.cases import BADNETS, defended, spec
from tests.lab.memory import DIGITS_ONLY
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import load_dataset
from worker.lab.defenses import nad
from worker.lab.defenses.activation_clustering import (
    Clusters,
    is_poison,
    reclassification_score,
    split_in_two,
)
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.clean_set import draw_clean_set
from worker.lab.defenses.fine_pruning import MaskedSgd
from worker.lab.defenses.ft_sam import Sam, waves
from worker.lab.defenses.mcr import bezier_point, piecewise
from worker.lab.defenses.nad import attention_map, distillation_objective, two_rates
from worker.lab.defenses.neural_cleanse import FACTOR, InvertedTriggers, anomaly_index
from worker.lab.defenses.repair import divide_steps, train_steps
from worker.lab.defenses.spectral_signatures import flagged_per_class, outlier_scores
from worker.lab.defenses.strip import entropy_threshold
from worker.lab.networks import Network, build_network
from worker.lab.stages import StageRun
from worker.lab.training import Batch, Recipe

DEFENSES = {
    spec.model_fields["name"].default: spec for spec in (Anp, FinePruning, FineTuning, FtSam, IBau, Mcr, Nad)
}


def test_anomaly_index_counts_deviations_below_the_median() -> None:
    # median 10, deviations 0 1 1 2 8: their median is 1
    index = anomaly_index(torch.tensor([2.0, 9.0, 10.0, 11.0, 12.0]))
    assert index.tolist() == pytest.approx([8 / 1.4826, 1 / 1.4826, 0, -1 / 1.4826, -2 / 1.4826])


def test_the_cost_of_a_mask_doubles_and_masks_have_the_authors_tanh_form() -> None:
    assert FACTOR == 2
    triggers = InvertedTriggers(3, (1, 40, 40), torch.Generator().manual_seed(0))
    assert triggers.masks.mean().item() == pytest.approx(0.5, abs=0.02)
    assert triggers.masks.std().item() == pytest.approx(12**-0.5, abs=0.02)  # uniform
    with torch.no_grad():
        triggers.mask_tanh.fill_(1.0)
    assert triggers.masks[0, 0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_the_curve_runs_from_end_to_end() -> None:
    first, bend, last = ({"w": torch.tensor([value])} for value in (1.0, 5.0, 2.0))
    assert [bezier_point(first, bend, last, t)["w"].item() for t in (0.0, 1.0)] == [1.0, 2.0]
    assert bezier_point(first, bend, last, 0.5)["w"].item() == pytest.approx(0.25 * 1 + 0.5 * 5 + 0.25 * 2)


def test_sam_applies_the_gradient_of_the_worst_point_to_the_original_weights() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    optimizer = Sam([weight], recipe, rho=0.5, network=nn.Identity())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # With one weight, T g / |T g| is its sign: the worst point is w + rho |w|, the gradient there twice that.
    worst = 2.0 + 0.5 * 2.0
    assert weight.item() == pytest.approx(2.0 - 0.1 * 2 * worst)


def test_sam_updates_running_statistics_once_a_step() -> None:
    """By the pass at the original weights; they are as after one ordinary pass."""
    network = build_network(SmallCnn(), BUILT_IN["digits"], 0).train()
    other = build_network(SmallCnn(), BUILT_IN["digits"], 0).train()
    x, labels = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    optimizer = Sam(network.parameters(), recipe, rho=2.0, network=network)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        return loss

    other(x)
    optimizer.step(closure)
    expected = dict(other.named_buffers())
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_the_rate_of_ft_sam_falls_and_rises() -> None:
    schedule = waves(1000, 100)
    assert [schedule(step / 1000) for step in (0, 50, 100, 200)] == pytest.approx([1, 0.5, 0, 1], abs=1e-9)


def test_steps_are_divided_into_few_epochs_of_whole_passes() -> None:
    assert divide_steps(1000, 10) == (20, 5)
    assert divide_steps(800, 40) == (20, 1)
    assert divide_steps(4, 4) == (1, 1)
    assert divide_steps(1, 10) == (1, 1)
    assert divide_steps(250, 25, epochs=5) == (5, 2)


def test_fine_tuning_keeps_pruned_channels_pruned() -> None:
    network = build_network(SmallCnn(), BUILT_IN["digits"], 0)
    with torch.no_grad():
        network.head.weight[:, :3] = 0
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    optimizer = MaskedSgd(network.parameters(), recipe, network)
    before = network.head.weight.clone()
    nn.functional.cross_entropy(network(torch.rand(8, 1, 8, 8)), torch.arange(8)).backward()
    optimizer.step()
    assert not network.head.weight[:, :3].any()
    assert not torch.equal(network.head.weight[:, 3:], before[:, 3:])


def test_nad_has_the_mean_squares_and_the_two_rates_of_its_authors() -> None:
    """Against at.py: the mean over images and positions, of whatever size the maps are."""
    student, teacher = (build_network(SmallCnn(), BUILT_IN["digits"], seed).eval() for seed in (0, 1))
    x, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    loss = distillation_objective(Nad(), teacher)(student, Batch(x, labels, labels, torch.Generator()))
    expected = nn.functional.cross_entropy(student(x), labels)
    for beta, a, b in zip(
        (500, 1000, 1000), student.feature_maps(x)[-3:], teacher.feature_maps(x)[-3:], strict=True
    ):
        maps = []
        for feature_map in (a, b):
            attention = feature_map.pow(2).sum(1, keepdim=True)
            maps.append(attention / (attention.norm(dim=(2, 3), keepdim=True) + 1e-6))
        expected = expected + beta * (maps[0] - maps[1]).pow(2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    schedule = two_rates(Nad(), 800)
    assert [schedule(step / 800) for step in (0, 79, 80, 799)] == pytest.approx([1, 1, 0.1, 0.1])


def test_nad_cuts_holes_into_the_images_of_teacher_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Augment] = []

    def watch(lab: RepairDefense, stage: StageRun, network: Network, recipe: Recipe, steps: int) -> None:
        seen.append(recipe.augment)
        train_steps(lab, stage, network, recipe, steps)

    monkeypatch.setattr(nad, "train_steps", watch)
    short = {"name": "nad", "teacher_steps": 4, "steps": 4}
    defended(
        BADNETS, {**short, "clean_ratio": 0.21}, {**short, "clean_ratio": 0.21, "arm": "whole", "cutout": 0}
    )
    assert [augment.cutout for augment in seen] == [2, 2, 0, 0]
    assert len({augment.crop_padding for augment in seen}) == 1


def test_a_final_normalization_is_not_part_of_the_last_stages_map() -> None:
    network = build_network(WideResNet16x1(), BUILT_IN["cifar10"], 0).eval()
    x = torch.rand(2, 3, 32, 32)
    last = network.stage_maps(x)[-1]
    assert (last < 0).any()
    assert torch.equal(network.apply_final_norm(last), network.feature_maps(x)[-1])


def test_the_curves_rate_is_piecewise() -> None:
    assert [piecewise(share) for share in (0, 0.5, 0.7, 0.9, 1)] == pytest.approx([1, 1, 0.505, 0.01, 0.01])


def test_attention_maps_are_unit_vectors_of_mean_powers() -> None:
    feature_map = torch.tensor([[[[1.0, 0.0]], [[-1.0, 2.0]]]])  # [1, 2 channels, 1, 2]
    assert attention_map(feature_map, 2.0)[0].tolist() == pytest.approx([1 / 5**0.5, 2 / 5**0.5])


def test_spectral_scores_are_squares_along_the_longest_axis() -> None:
    points = torch.tensor([[3.0, 0.1], [-3.0, -0.1], [0.0, 1.0], [0.0, -1.0]])
    scores = outlier_scores(points)
    assert scores[:2].tolist() == pytest.approx([9.0, 9.0], rel=0.01)
    assert scores[2:].max() < 0.01


def test_a_poisoned_share_of_the_whole_set_is_capped_at_half_of_a_class() -> None:
    by_share, by_count = SpectralSignatures(), SpectralSignatures.model_validate({"preset": "toolbox"})
    assert flagged_per_class(by_share, 1000, 10_000) == 150
    assert flagged_per_class(by_count, 1000, 10_000) == 500
    assert flagged_per_class(SpectralSignatures(expected_rate=0.02), 1000, 10_000) == 300


def test_strip_s_threshold_is_a_quantile_of_the_fit_or_of_the_entropies() -> None:
    entropies = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    fitted = entropy_threshold(Strip(false_positive_rate=0.25), entropies)
    assert fitted == pytest.approx(1 - 0.67449 * 0.5**0.5, rel=1e-4)
    assert entropy_threshold(Strip(false_positive_rate=0.25, threshold="quantile"), entropies) == 1.0


def test_a_small_cluster_is_flagged_without_a_silhouette_bar() -> None:
    small = torch.arange(10) < 3
    clusters = Clusters(torch.arange(10), small, torch.zeros(10), silhouette=0.27)
    assert is_poison(ActivationClustering(), clusters, float("nan"))
    assert not is_poison(ActivationClustering(min_silhouette=0.45), clusters, float("nan"))
    assert not is_poison(ActivationClustering(max_size=0.3), clusters, float("nan"))
    assert is_poison(ActivationClustering(analysis="smaller", max_size=0.3), clusters, float("nan"))


def test_reclassification_compares_the_label_with_the_most_common_other_class() -> None:
    assert reclassification_score(torch.tensor([0, 0, 1, 2, 2, 2, 2]), 0) == 0.5
    assert reclassification_score(torch.tensor([3, 3]), 3) == float("inf")
    clusters = Clusters(torch.arange(4), torch.arange(4) < 2, torch.zeros(4), 0.2)
    spec = ActivationClustering(analysis="exclusionary_reclassification")
    assert is_poison(spec, clusters, 0.5)
    assert not is_poison(spec, clusters, float("inf"))


def test_the_smaller_of_two_clusters_is_the_suspicious_one() -> None:
    points = (
        torch.cat([torch.zeros(12, 2), torch.full((4, 2), 5.0)]).double()
        + torch.linspace(0, 0.1, 16)[:, None]
    )
    small, margin, silhouette = split_in_two(points, 0)
    assert small.nonzero().flatten().tolist() == [12, 13, 14, 15]
    assert margin[12:].min() > 0.9 > -0.9 > margin[:12].max()
    assert silhouette > 0.9


def test_the_clean_set_is_the_same_for_all_defenses_and_its_parts_are_disjoint() -> None:
    train = load_dataset(ExperimentSpec().dataset, DIGITS_ONLY, 0).train
    clean = draw_clean_set(train, 10, 72, 0.2, seed=4)
    again = draw_clean_set(train, 10, 72, 0.2, seed=4)
    other = draw_clean_set(train, 10, 72, 0.2, seed=5)
    assert torch.equal(clean.images, again.images)
    assert not torch.equal(clean.images, other.images)
    assert (len(clean.fit), len(clean.held_out)) == (58, 14)
    assert torch.bincount(clean.fit.labels).min() >= 5
    fit = {image.numpy().tobytes() for image in clean.fit.images}
    held_out = {image.numpy().tobytes() for image in clean.held_out.images}
    assert not fit & held_out
    assert fit | held_out <= {image.numpy().tobytes() for image in train.images}


def test_all_of_the_clean_set_is_trained_on_where_nothing_needs_to_be_held_out() -> None:
    train = load_dataset(ExperimentSpec().dataset, DIGITS_ONLY, 0).train
    whole, parted = (draw_clean_set(train, 10, 72, held_out, seed=4) for held_out in (0.0, 0.2))
    assert (len(whole.fit), len(whole.held_out)) == (72, 0)
    assert sorted(image.numpy().tobytes() for image in whole.fit.images) == sorted(
        image.numpy().tobytes() for image in parted.images
    )
    held_out = {name for name, spec in DEFENSES.items() if "held_out_ratio" in spec.model_fields}
    assert {"fine_pruning", "anp"} <= held_out
    assert not held_out & {"fine_tuning", "nad", "mcr", "ft_sam", "i_bau"}


@pytest.mark.parametrize(
    ("name", "preset", "fields"),
    [
        ("anp", "authors", {"threshold": 0.2, "clean_ratio": 0.01}),
        ("fine_pruning", "paper", {"max_accuracy_drop": 0.04}),
        ("nad", "authors", {"steps": 800, "first_steps": 80, "betas": (500, 1000, 1000), "cutout": 2}),
        ("nad", "benchmark", {"steps": 100, "first_steps": 0, "learning_rate": 0.01, "cutout": 0}),
        ("mcr", "benchmark", {"learning_rate": 3e-5, "point": 0.1}),
        ("i_bau", "benchmark", {"learning_rate": 1e-4, "amsgrad": True, "steps": 50}),
    ],
)
def test_presets_are_published_settings(name: str, preset: str, fields: dict[str, object]) -> None:
    defense = DEFENSES[name].model_validate({"name": name, "preset": preset})
    assert {field: getattr(defense, field) for field in fields} == fields


@pytest.mark.parametrize("name", ["fine_tuning", "fine_pruning", "nad", "mcr", "ft_sam"])
def test_lengths_in_epochs_are_refused(name: str) -> None:
    """They were fields once: a stored experiment that has them cannot be run again."""
    with pytest.raises(ValidationError, match=r"defenses\.0\.\w+\.epochs"):
        ExperimentSpec.model_validate(spec(BADNETS, {"name": name, "epochs": 2}))


def test_a_clean_set_without_an_image_of_every_class_is_refused() -> None:
    whole = ExperimentSpec.model_validate(
        spec(BADNETS, {"name": "strip"}, {"name": "nad", "clean_ratio": 0.001})
    )
    (problem,) = find_problems(whole, BUILT_IN["digits"])
    assert problem.field == "defenses.1.clean_ratio"
    assert problem.value == 0.001
    assert "0.00696" in problem.allowed


@pytest.mark.parametrize(
    "defense",
    [
        {"name": "nad", "betas": [1, 2]},
        {"name": "strip", "then": "unlearn"},
        {"name": "neural_cleanse", "then": "purge_and_retrain"},
        {"name": "spectral_signatures", "clean_ratio": 0.1},
        {"name": "nab", "isolation_epochs": 3},
        {"name": "anp", "threshold": 1.0},
    ],
)
def test_invalid_fields_are_refused(defense: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"defenses\.0"):
        ExperimentSpec.model_validate(spec(BADNETS, defense))
