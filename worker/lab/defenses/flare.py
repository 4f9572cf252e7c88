"""FLARE (Hou et al. 2025), from the authors' code, BackdoorBox core/defenses/FLARE.py (lines in brackets).

A trigger drives some activation of some layer far from what the layer's batch normalization has seen, and in which
layer differs from attack to attack. A sample is represented by its least likely activation in every layer [26-40]. The
samples are mapped to the plane [199] and clustered by density [202]. From the split of the whole set, the largest
cluster is followed until it outlasts the split that made it; the set is cut there, and all other clusters are flagged
[260-330]. If it never does, the deepest layer is left out and the rest is tried [194]. Samples outside of every
cluster count as clean.

Differences: the cut is just after the split that made the largest cluster, where the code's is at the end of that
cluster's life [318]. By then a poisoned cluster of few more than `min_cluster_size` samples has dissolved: on digits
none of 144 poisoned samples would be found, instead of all. And where the code stops with an error this one goes on: a
largest cluster without a further split lasts until it dissolves, and one that is never stable costs a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.specs.defenses.purification import Flare
from worker.lab.compute import derive_seed
from worker.lab.defenses.base import DetectionDefense
from worker.lab.defenses.detection import finish_detection, retrain_without_flagged
from worker.lab.defenses.neighbor_embedding import embed
from worker.lab.evaluation import extract_with
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

MANY, EPOCHS, EPOCHS_OF_MANY = 10_000, 500, 200  # of the map, as in UMAP's published code
CLEAR_RATIO = 2.0  # of densities; on digits, seed 0, 13 with poison and 1.1 without
MARGIN = 1e-6  # share of a distance by which a cut is below the split that it must follow


def least_likelihoods(network: Network) -> Callable[[Tensor], Tensor]:
    """A function from images ``[B, C, H, W]`` to ``[B, layers]``: the least log-likelihood of an activation.

    That of what a batch normalization is given, under a normal distribution with its running mean and variance, least
    over channels and positions [26-40]. Layers are in the order in which they run.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]

    def call(x: Tensor) -> Tensor:
        least: dict[nn.Module, Tensor] = {}

        def record(layer: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, variance = layer.running_mean[:, None, None], layer.running_var[:, None, None] + layer.eps
            density = -0.5 * ((given[0].float() - mean).square() / variance + (2 * torch.pi * variance).log())
            least[layer] = density.flatten(1).amin(1)

        handles = [layer.register_forward_pre_hook(record) for layer in layers]
        try:
            network(x)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(list(least.values()), 1)

    return call


@dataclass(frozen=True)
class Split:
    """Where a cluster divides into two that are large enough, or dissolves."""

    distance: float
    larger: int | None
    """The node of the larger part; None if the cluster dissolves."""


class Hierarchy:
    """Single-linkage clusters: nodes 0 to n - 1 are the points, node n + i is row i, and the last one is everything.

    ``rows`` are (left node, right node, distance, size), by rising distance. A part of fewer than ``least`` points is
    no cluster: its points leave the cluster that goes on.
    """

    def __init__(self, rows: NDArray[np.void], least: int) -> None:
        self.rows, self.least = rows, least
        self.points = len(rows) + 1
        self.root = 2 * len(rows)

    def size(self, node: int) -> int:
        return 1 if node < self.points else int(self.rows[node - self.points][3])

    def split(self, node: int) -> Split:
        """The first split of the cluster ``node``."""
        while True:
            left, right, distance, _ = self.rows[node - self.points].tolist()
            large = [part for part in (left, right) if self.size(part) >= self.least]
            if len(large) == 2:
                return Split(distance, max(large, key=self.size))
            if not large:
                return Split(distance, None)
            node = large[0]


def find_cut(tree: Hierarchy, stability: float, depth: int) -> tuple[float, float] | None:
    """The distance at which to cut, so that the largest cluster is whole and apart; None if it is not stable [260].

    And the ratio of the densities at which that cluster ends and begins.
    """
    born = tree.split(tree.root)
    for _ in range(depth):
        if born.larger is None:
            return None
        end = tree.split(born.larger)
        density = 1 / max(end.distance, 1e-12)
        if density - 1 / born.distance > stability:
            return born.distance * (1 - MARGIN), density * born.distance
        born = end
    return None


def other_clusters(plane: Tensor, spec: Flare) -> tuple[Tensor, float] | None:
    """bool ``[n]``: in a cluster of the plane ``[n, 2]`` that is not the largest; None if the largest is not stable.

    And the ratio that `find_cut` gives.
    """
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415  # slow to import

    fitted = HDBSCAN(min_cluster_size=spec.min_cluster_size, copy=True).fit(plane.numpy())
    # The tree of the clusters has no public name; the clusters at a cut have.
    tree = Hierarchy(fitted._single_linkage_tree_, spec.min_cluster_size)
    cut = find_cut(tree, spec.stability, spec.depth)
    if cut is None:
        return None
    labels = torch.from_numpy(fitted.dbscan_clustering(cut[0], min_cluster_size=spec.min_cluster_size))
    if not (labels >= 0).any():
        return None
    return (labels >= 0) & (labels != labels[labels >= 0].bincount().argmax()), cut[1]


def run(spec: Flare, lab: DetectionDefense) -> Network:
    """Represent every sample, find the layers in which the largest cluster is apart, flag the others, and retrain."""

    def detect(stage: StageRun) -> Outcome:
        likelihoods = extract_with(lab.victim, least_likelihoods(lab.victim), lab.images, lab.compute).cpu()
        epochs = spec.map_epochs or (EPOCHS if len(likelihoods) <= MANY else EPOCHS_OF_MANY)
        layers = likelihoods.shape[1]
        flagged = torch.zeros(len(likelihoods), dtype=torch.bool)
        for used in range(layers, 0, -1):
            stage.recorder.check()
            generator = torch.Generator().manual_seed(derive_seed(stage.planned.stream, used))
            found = other_clusters(embed(likelihoods[:, :used], spec.neighbors, epochs, generator), spec)
            if found is None:
                lab.recorder.log(f"flare: with {used} of {layers} layers the largest cluster is not stable")
                continue
            flagged, ratio = found
            lab.recorder.log(
                f"flare: with {used} of {layers} layers the largest cluster ends at {ratio:.3g} times the density "
                "at which it begins"
            )
            if ratio < CLEAR_RATIO:
                lab.warn(
                    stage,
                    f"the largest cluster ends at {ratio:.2f} times the density at which it begins, so it is hardly "
                    "apart from the others; the set may be clean",
                )
            break
        return finish_detection(lab, stage, flagged.float(), flagged.to(lab.labels.device))

    return retrain_without_flagged(lab, spec.then, lab.stage("detection", detect))
