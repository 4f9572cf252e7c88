"""A map of points to the plane that keeps neighborhoods: UMAP (McInnes, Healy and Melville 2018, arXiv:1802.03426).

Written out because the published package needs a compiler of its own. Two things differ from it: the map starts from
the first two principal components instead of the graph's eigenvectors, and the edges that are due in an epoch are
followed in groups in which every point moves its own way once, instead of one after the other.
"""

import torch
from torch import Tensor

A, B = 1.9328, 0.7905  # 1 / (1 + A d^(2B)) fitted to exp(-d) on [0, 3], the shape for a least distance of 0
BISECTIONS = 64
LEAST_SCALE = 1e-3  # of a neighborhood, times its mean distance
SIDE = 10.0  # of the square that the map starts in
REPULSIONS = 5  # random points that push an edge's head away, each time that the edge is followed
MOST_PULL = 4.0  # a coordinate's step at a learning rate of 1
CHUNK = 2**24  # distances that are held at a time


def nearest_neighbors(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distances and rows, both ``[n, count]``, of the points nearest to each of ``[n, D]``, without itself."""
    distances, rows = [], []
    size = max(1, CHUNK // len(points))
    for start in range(0, len(points), size):
        # Differences, not products: near points would lose their distance to rounding.
        part = torch.cdist(points[start : start + size], points, compute_mode="donot_use_mm_for_euclid_dist")
        part[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        nearest = part.topk(count, dim=1, largest=False)
        distances.append(nearest.values)
        rows.append(nearest.indices)
    return torch.cat(distances), torch.cat(rows)


def membership(distances: Tensor) -> Tensor:
    """How strongly each point is tied to its neighbors, ``[n, k]`` in [0, 1], from their distances in rising order.

    1 for the nearest, then falling at such a scale that the sum is log2(k + 1): the published code counts the
    point itself among its k + 1 neighbors.
    """
    beyond = distances - distances[:, :1]
    goal = torch.tensor(float(distances.shape[1] + 1)).log2()
    low, high = torch.zeros(len(distances), 1), torch.full((len(distances), 1), torch.inf)
    scale = torch.ones(len(distances), 1)
    for _ in range(BISECTIONS):
        too_large = (-beyond / scale).exp().sum(1, keepdim=True) > goal
        high, low = torch.where(too_large, scale, high), torch.where(too_large, low, scale)
        scale = torch.where(high.isinf(), 2 * scale, (low + high) / 2)
    least = LEAST_SCALE * distances.mean(1, keepdim=True)
    return (-beyond / torch.maximum(scale, least).clamp(min=1e-12)).exp()


def unite_memberships(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The edges ``(heads, tails, weights)`` of the symmetric graph, sorted by head: ``a + b - a b`` of both directions.

    ``weights`` and ``rows`` ``[n, k]`` are each point's ties to its neighbors.
    """
    n = len(rows)
    heads, tails, ties = torch.arange(n).repeat_interleave(rows.shape[1]), rows.flatten(), weights.flatten()
    keys, place = torch.cat([heads * n + tails, tails * n + heads]).unique(return_inverse=True)
    ties = ties.repeat(2)
    total = torch.zeros(len(keys)).index_add(0, place, ties)
    squares = torch.zeros(len(keys)).index_add(0, place, ties.square())
    product = (total.square() - squares) / 2  # of the two directions of an edge, if it has both
    return keys // n, keys % n, total - product


def embed(points: Tensor, neighbors: int, epochs: int, generator: torch.Generator) -> Tensor:
    """``[n, D]`` on the CPU, mapped to float32 ``[n, 2]`` by neighborhoods of ``neighbors`` points, itself included."""
    n = len(points)
    distances, rows = nearest_neighbors(points, min(neighbors, n) - 1)
    heads, tails, weights = unite_memberships(membership(distances), rows)
    kept = weights >= weights.max() / epochs  # the others would not be followed once
    heads, tails, weights = heads[kept], tails[kept], weights[kept]
    return _arrange(_principal_plane(points), heads, tails, weights.max() / weights, epochs, generator)


def _principal_plane(points: Tensor) -> Tensor:
    """The first two principal components of ``[n, D]``, each scaled to [0, SIDE]."""
    centered = points.double() - points.double().mean(0)
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -2:]
    axes = (
        axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    )  # an eigenvector's sign is arbitrary
    plane = (centered @ axes).float()
    if plane.shape[1] < 2:  # of points that have one dimension
        plane = plane.repeat(1, 2)
    low, high = plane.amin(0), plane.amax(0)
    placed: Tensor = SIDE * (plane - low) / (high - low).clamp(min=1e-12)
    return placed


def _arrange(
    places: Tensor, heads: Tensor, tails: Tensor, periods: Tensor, epochs: int, generator: torch.Generator
) -> Tensor:
    """Move ``places`` ``[n, 2]`` along the edges, each of which is followed every ``periods`` epochs."""
    due = periods.clone()
    for epoch in range(epochs):
        rate = 1 - epoch / epochs
        is_due = due <= epoch
        due = torch.where(is_due, due + periods, due)
        edges = is_due.nonzero().flatten()
        # By an edge's number among those of its head, so that each group has few of the same head.
        number = torch.arange(len(edges)) - torch.searchsorted(heads[edges], heads[edges])
        for group in edges[number.argsort(stable=True)].split(len(places)):
            head, tail = heads[group], tails[group]
            pull = rate * _pull(places[head] - places[tail])
            places = places.index_add(0, head, pull).index_add(0, tail, pull, alpha=-1)
            others = torch.randint(len(places), (len(group), REPULSIONS), generator=generator)
            places = places.index_add(0, head, rate * _push(places[head][:, None] - places[others]).sum(1))
    return places


def _pull(difference: Tensor) -> Tensor:
    """The step of an edge's head towards its tail: the gradient of log(1 / (1 + A d^(2B)))."""
    square = difference.square().sum(-1, keepdim=True).clamp(min=1e-12)
    factor = -2 * A * B * square ** (B - 1) / (1 + A * square**B)
    return (factor * difference).clamp(-MOST_PULL, MOST_PULL)


def _push(difference: Tensor) -> Tensor:
    """The step of a point away from another: the gradient of log(1 - 1 / (1 + A d^(2B)))."""
    square = difference.square().sum(-1, keepdim=True)
    factor = 2 * B / ((0.001 + square) * (1 + A * square**B))
    return (factor * difference).clamp(-MOST_PULL, MOST_PULL)
