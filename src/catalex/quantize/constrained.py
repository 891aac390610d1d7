"""k-means whose clusters have a smallest and a largest size.

LETTER (arXiv 2405.07314) groups the code vectors of a level with it. The published code solves a flow problem
for each assignment; here vectors are moved one by one, always the one whose distance grows least, until all
sizes are within the bounds: the bounds hold exactly, the sum of distances is close to the smallest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catalex.quantize.distances import squared_distances
from catalex.quantize.kmeans import Clusters, cluster_means, kmeans


def constrained_kmeans(
    vectors: Tensor, clusters: int, smallest: int, largest: int, *, seed: int, iterations: int = 10
) -> Clusters:
    """Cluster vectors ``(N, D)`` into K clusters of `smallest` to `largest` members.

    Args:
        vectors: ``(N, D)``, on any device; the sizes are settled on the CPU.
        clusters: K.
        smallest: Members of a cluster at least.
        largest: Members of a cluster at most.
        seed: Fixes the k-means++ start.
        iterations: Largest number of rounds of assignment and means.

    Raises:
        ValueError: When N vectors cannot be shared out within the bounds.
    """
    count = len(vectors)
    if not smallest * clusters <= count <= largest * clusters or clusters < 1:
        raise ValueError(
            f"{count} vectors do not fit into {clusters} clusters of {smallest} to {largest} members"
        )
    rows = vectors.detach().float().cpu()
    centroids = kmeans(rows, clusters, seed=seed, iterations=0).centroids
    assignment, inertia = torch.zeros(0, dtype=torch.int64), []
    for _ in range(max(iterations, 1)):
        table = squared_distances(rows, centroids)
        changed = bounded_assignment(table, smallest, largest)
        inertia.append(float(table.gather(1, changed[:, None]).double().sum()))
        if torch.equal(changed, assignment):
            break
        assignment = changed
        centroids = cluster_means(rows, assignment, centroids)
    return Clusters(centroids.to(vectors.device), assignment.to(vectors.device), inertia)


def bounded_assignment(distances: Tensor, smallest: int, largest: int) -> Tensor:
    """``(N,)`` cluster of each row of ``(N, K)``: the nearest, except for those that the bounds move.

    Crowded clusters first give away the members that lose least by the next cluster with room; then clusters
    that are too small take, from those that can spare them, the vectors that lose least.
    """
    assignment = distances.argmin(1)
    sizes = torch.bincount(assignment, minlength=distances.shape[1])
    while int(sizes.max()) > largest:
        crowded = int(sizes.argmax())
        room = sizes < largest
        members = torch.nonzero(assignment == crowded).squeeze(1)
        others = distances[members].masked_fill(~room, torch.inf)
        loss = others.min(1)
        chosen = int((loss.values - distances[members, crowded]).argmin())
        target = int(loss.indices[chosen])
        assignment[members[chosen]] = target
        sizes[crowded] -= 1
        sizes[target] += 1
    for poor in torch.nonzero(sizes < smallest).squeeze(1).tolist():
        own = distances.gather(1, assignment[:, None])[:, 0]
        order = torch.argsort(distances[:, poor] - own, stable=True)
        for row in order.tolist():
            if int(sizes[poor]) >= smallest:
                break
            donor = int(assignment[row])
            if donor != poor and int(sizes[donor]) > smallest:
                assignment[row] = poor
                sizes[donor] -= 1
                sizes[poor] += 1
    return assignment
