"""Purifications: their parts against values computed by hand, and what they find on digits."""

import csv
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from app.specs.checks import find_problems
from app.specs.defenses.purification import CognitiveDistillation, Spectre
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab.defenses.cases import BADNETS, NOTHING, Spec, defended, number, spec
from worker.lab.adam import Adam
from worker.lab.compute import Compute
from worker.lab.defenses.asset import Separator, medcouple, outlyingness, score_threshold
from worker.lab.defenses.beatrix import ClassRanges, gram_features, kernel_distance
from worker.lab.defenses.cognitive_distillation import distill, total_variation
from worker.lab.defenses.flare import Hierarchy, find_cut, least_likelihoods
from worker.lab.defenses.neighbor_embedding import embed, membership, nearest_neighbors, unite_memberships
from worker.lab.defenses.scan import decompose, estimate_means, lean, likelihood_ratio, split_class
from worker.lab.defenses.spectre import entropy_weights, filter_class, poison_in_class, trim, whiten
from worker.lab.networks import Network

DOUBLE = torch.float64


class TwoNorms(Network):
    """Two batch normalizations, one after the other, of one channel."""

    def __init__(self) -> None:
        super().__init__(1)
        self.first, self.second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x))
        return y


def test_flare_takes_the_least_likely_activation_of_every_layer() -> None:
    network = TwoNorms().eval()
    assert network.first.running_mean is not None
    assert network.first.running_var is not None
    network.first.running_mean.fill_(1.0)
    network.first.running_var.fill_(4.0)
    x = torch.tensor([[[[1.0, 5.0], [0.0, 2.0]]]])
    found = least_likelihoods(network)(x)[0].tolist()
    # 5 is two deviations from 1; the second layer is given (5 - 1) / 2 and expects a standard normal distribution.
    log_density = -0.5 * math.log(2 * math.pi) - 2
    assert found == pytest.approx([log_density - math.log(2), log_density], abs=1e-4)
    assert not network.first._forward_pre_hooks


def chain(*merges: tuple[int, int, float, int]) -> np.ndarray:
    names = ("left", "right", "distance", "size")
    return np.array(list(merges), dtype=list(zip(names, ("i8", "i8", "f8", "i8"), strict=True)))


def test_flare_cuts_where_the_largest_cluster_is_made_if_it_outlasts_the_split() -> None:
    # Points 0 to 2 join at 1 and 2, points 3 and 4 at 1, point 5 joins them at 4, and all at 10.
    rows = chain((0, 1, 1.0, 2), (3, 4, 1.0, 2), (6, 2, 2.0, 3), (7, 5, 4.0, 3), (8, 9, 10.0, 6))
    tree = Hierarchy(rows, 2)
    assert (tree.split(tree.root).distance, tree.split(tree.root).larger) == (10.0, 8)
    dissolved = tree.split(8)  # a single point leaves at 2, the last two part at 1
    assert (dissolved.distance, dissolved.larger) == (1.0, None)
    cut = find_cut(tree, stability=0.5, depth=3)
    assert cut is not None
    assert cut[0] == pytest.approx(10.0, abs=1e-4)
    assert cut[0] < 10.0
    assert cut[1] == pytest.approx(10.0)  # of the densities 1 / 1 and 1 / 10
    assert find_cut(tree, stability=0.95, depth=3) is None
    assert find_cut(Hierarchy(rows, 4), stability=0.01, depth=3) is None  # nothing is large enough


def test_neighborhoods_become_a_symmetric_graph() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    distances, rows = nearest_neighbors(points, 2)
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]
    assert rows.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    ties = membership(distances)
    assert ties[:, 0].tolist() == [1, 1, 1, 1]
    assert ties.sum(1).tolist() == pytest.approx([math.log2(3)] * 4, abs=1e-4)
    heads, tails, weights = unite_memberships(ties, rows)
    graph = {(h, t): w for h, t, w in zip(heads.tolist(), tails.tolist(), weights.tolist(), strict=True)}
    assert all(graph[t, h] == pytest.approx(w) for (h, t), w in graph.items())
    a, b = ties[0, 1].item(), ties[2, 1].item()  # 0 to 2 and 2 to 0
    assert graph[0, 2] == pytest.approx(a + b - a * b)
    assert graph[3, 1] == pytest.approx(ties[3, 1].item())  # 3 is no neighbor of 1


def test_the_map_keeps_two_groups_apart_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(80, 5, generator=generator)
    points[40:] += 8
    plane = embed(points, 10, 60, torch.Generator().manual_seed(1))
    inside = max(torch.cdist(part, part).median().item() for part in plane.split(40))
    assert torch.cdist(plane[:40], plane[40:]).min() > inside
    assert torch.equal(plane, embed(points, 10, 60, torch.Generator().manual_seed(1)))


def test_scan_untangles_the_covariances_and_shrinks_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(40)
    means = torch.randn(20, 2, generator=generator, dtype=DOUBLE) * torch.tensor([3.0, 0.0])
    points = means[labels] + torch.randn(800, 2, generator=generator, dtype=DOUBLE) * torch.tensor([1.0, 2.0])
    between, within = decompose(points - points.mean(0), labels, 20)
    assert within.diag().tolist() == pytest.approx([1, 4], rel=0.15)
    assert between[0, 0].item() == pytest.approx(means[:, 0].var().item(), rel=0.15)
    assert between[1, 1].item() < 0.15  # there the means are equal
    one = estimate_means(torch.eye(1) * 2, torch.eye(1), torch.tensor([[6.0]]), torch.tensor([3]))
    assert one.item() == pytest.approx(2 * 6 / (3 * 2 + 1))


def test_scan_splits_a_class_and_tests_two_means_against_one() -> None:
    points = torch.tensor([[-1.0], [-1.0], [-1.0], [3.0]], dtype=DOUBLE)
    precision = torch.eye(1, dtype=DOUBLE)
    half = split_class(points, precision, torch.Generator().manual_seed(0))
    assert half[0] == half[1] == half[2] != half[3]
    assert likelihood_ratio(points, half, points.mean(0), precision) == pytest.approx((1 + 1 + 1 + 9) / 4)
    last = torch.tensor([False, False, False, True])
    assert lean(points, last, precision).tolist() == [-16, -16, -16, 16]


def test_spectre_whitens_and_weights_directions_by_their_spread() -> None:
    points = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=DOUBLE)
    covariance = points.T @ points / 4
    assert torch.allclose(whiten(points, covariance), points / covariance.diag().sqrt(), atol=1e-6)
    weights = entropy_weights(torch.diag(torch.tensor([2.0, 1.5, 1.0], dtype=DOUBLE)))
    expected = torch.tensor([4.0, 2.0, 0.0]).exp()  # alpha (values - 1) / (2 - 1)
    assert weights.diag().tolist() == pytest.approx((expected / expected.sum()).tolist())


def test_spectre_finds_poison_in_a_direction_of_little_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 6, generator=generator, dtype=DOUBLE) * torch.tensor([9.0, 5, 3, 2, 1, 0.2])
    points[:12, 5] += 3
    kept = trim(points - points.mean(0), 12)
    assert 200 - 24 <= int(kept.sum()) <= 200
    scores, flagged, _ = filter_class(points, 12)
    assert int(flagged.sum()) == 18
    assert flagged[:12].all()
    assert scores[:12].min() > scores[12:].median()


def test_spectre_assumes_at_most_a_third_of_a_class() -> None:
    given = Spectre(expected_rate=0.1)
    assert poison_in_class(given, 9500, 50000) == round(0.33 * 9500)
    assert poison_in_class(Spectre(expected_rate=0.01), 5000, 50000) == 500
    assert poison_in_class(given, 300, 3000) == 30  # a tenth of a small class


def test_beatrix_compares_the_gram_matrices_of_powers() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    assert gram_features(maps, 1)[0].tolist() == pytest.approx([5, 3, 9])
    assert gram_features(maps, 2)[0].tolist() == pytest.approx([17**0.5, 3, 9])
    clean = torch.tensor([1.0, 1.1, 1.2]).view(3, 1, 1, 1)
    ranges = ClassRanges(clean)
    assert ranges.deviations(clean).tolist() == [0, 0, 0]
    # F^2 for every power: median 1.21, deviation 0.21, 0 and 0.23, so that the range ends at 1.21 + 10 * 0.21.
    high = 1.21 + 10 * 0.21
    expected = (4.0 - high) / high / 0.5
    assert ranges.deviations(torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(expected, rel=1e-4)


def test_beatrix_tells_two_groups_from_one() -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    same, apart = kernel_distance(points[:30], points[30:]), kernel_distance(points[:30], points[30:] + 3)
    assert apart > 3 * same
    assert kernel_distance(points, points[:0]) == 0


def test_cognitive_distillation_s_masks_are_smooth_by_squared_differences() -> None:
    mask = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])
    assert total_variation(mask).tolist() == pytest.approx([(1 + 0.25 + 0 + 0.25) / 4])
    assert CognitiveDistillation(steps=7).stages()[0][2] == 7


class Corner(Network):
    """Looks at one pixel, or at the sum of all."""

    def __init__(self, whole: bool) -> None:
        super().__init__(1)
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x.flatten(1).sum(1) if self.whole else x[:, 0, 0, 0]
        return torch.stack([4 * seen, -4 * seen], 1)


def test_cognitive_distillation_keeps_only_what_the_network_looks_at() -> None:
    x = torch.ones(2, 1, 4, 4)
    given, compute = CognitiveDistillation(mask_cost=0.1, smoothness=0.0), Compute(torch.device("cpu"))
    corner, whole = (
        distill(given, Corner(whole), x, compute, torch.Generator().manual_seed(0)).mean().item()
        for whole in (False, True)
    )
    assert corner < 3  # one pixel of 16, and what is left of the others
    assert whole > 12


def test_adam_is_torch_s() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    adam, reference = Adam([ours], 0.1, (0.8, 0.9)), torch.optim.Adam([theirs], 0.1, (0.8, 0.9))
    for _ in range(4):
        adam.descend(torch.autograd.grad(ours.pow(4).sum(), [ours]))
        theirs.grad = torch.autograd.grad(theirs.pow(4).sum(), theirs)[0]
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
    adam.descend([None])
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_asset_measures_skewness_and_outliers_by_medians() -> None:
    assert medcouple(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])) == 0
    # Of the pairs around 2: -1, 0, 1 and (8 - 1) / (8 + 1).
    assert medcouple(torch.tensor([1.0, 2.0, 10.0])) == pytest.approx(7 / 9 / 2)
    # Quartiles 0 and 2, so that whiskers end at -3 and 5, four from the median.
    assert outlyingness(torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0])).tolist() == [0.5, 0.25, 0, 0.25, 0.5]
    threshold = score_threshold(
        torch.tensor([1.0, 3.0, 9.0, 9.0])
    )  # mean 2 and deviation 1 of the lower half
    assert math.exp(-((threshold - 2) ** 2) / 2) / math.sqrt(2 * math.pi) == pytest.approx(1e-6)


def test_asset_s_small_network_tells_a_batch_from_clean_features() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, batch = torch.randn(200, 400, generator=generator), torch.randn(200, 400, generator=generator)
    batch[:10] += 2
    separator = Separator(400, generator)
    separator.separate(batch, clean, 8)
    with torch.no_grad():
        outputs = separator(batch)
    assert outputs[:10].min() > outputs[10:].max()
    assert (outlyingness(outputs)[:10] > 2).all()


def test_what_does_not_fit_is_refused() -> None:
    def refused(defense: Spec, **others: Spec) -> list[str]:
        whole = ExperimentSpec.model_validate({**spec(BADNETS, defense), **others})
        return [problem.field for problem in find_problems(whole, BUILT_IN[whole.dataset.name])]

    assert refused({"name": "flare", "min_cluster_size": 719}) == ["defenses.0.min_cluster_size"]
    assert refused({"name": "flare"}) == []
    transformer = {"name": "torchvision", "architecture": "vit_b_16"}
    for name in ("flare", "beatrix", "asset"):
        assert refused({"name": name}, dataset={"name": "cifar10"}, model=transformer) == ["defenses.0.name"]
    assert refused({"name": "scan", "clean_ratio": 0.001}) == ["defenses.0.clean_ratio"]


def classes_of(files: dict[str, bytes], arm: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[f"seed-0/{arm}/classes.csv"].decode())))


def test_purifications_find_badnets_on_digits() -> None:
    names = ("flare", "scan", "beatrix")
    short = {"flare": {"map_epochs": 100}}
    done = defended(BADNETS, *({"name": name, "then": "nothing", **short.get(name, {})} for name in names))
    # SCAN, on seeds 0 to 4: a recall of 0.42 to 0.76, a precision of 0.66 to 1.
    for name, recall, precision in (("flare", 0.8, 0.95), ("scan", 0.25, 0.5), ("beatrix", 0.8, 0.95)):
        assert number(done, name, "isolation_recall") > recall, name
        assert number(done, name, "isolation_precision") > precision, name
    for name in ("scan", "beatrix"):
        rows = classes_of(done.files, name)
        assert [row["class"] for row in rows if row["flagged"] == "1"] == ["0"]


def test_flare_warns_on_clean_data_that_its_clusters_are_hardly_apart() -> None:
    done = defended(NOTHING, {"name": "flare", "then": "nothing", "map_epochs": 100})
    assert number(done, "flare", "false_positives") == 0 or any("hardly apart" in w for w in done.warnings)
