"""The losses that LETTER adds to an RQ-VAE (arXiv 2405.07314): collaborative alignment and diversity.

With the quantized latent q_i, the item's collaborative vector h_i, the chosen code vector e_c and e_+ another
one of its cluster::

    L_CF  = - mean_i log  exp(<q_i, h_i>) / sum_j exp(<q_i, h_j>)          j over the batch
    L_Div = - mean_i log  exp(<e_c, e_+>) / sum_(j != c) exp(<e_c, e_j>)   each level, j over its codes
    L     = L_Sem + alpha L_CF + beta sum_l L_Div

Inner products are raw and have no temperature, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.quantize import squared_distances
from catalex.quantize.constrained import constrained_kmeans
from catalex.quantize.sinkhorn import sinkhorn
from catalex.tokenizers.rqvae_network import RQVAENetwork


class LetterLosses(NamedTuple):
    """Losses of one batch, scalars: their weighted sum, and each by itself, unweighted."""

    total: Tensor
    reconstruction: Tensor
    quantization: Tensor
    collaborative: Tensor
    diversity: Tensor


class CodeClusters(NamedTuple):
    """The K codes of a level in clusters of at least two.

    Attributes:
        members: ``(K, M)`` for each code the codes of its cluster, without itself, in the first `sizes`
            places.
        sizes: ``(K,)`` how many those are, one or more.
    """

    members: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, codebook: Tensor, clusters: int, seed: int) -> CodeClusters:
        """Group code vectors ``(K, d)`` by constrained k-means; sizes as `cluster_sizes` says."""
        clusters, smallest, largest = cluster_sizes(len(codebook), clusters)
        found = constrained_kmeans(codebook, clusters, smallest, largest, seed=seed)
        same = found.assignment[:, None] == found.assignment[None, :]
        same.fill_diagonal_(False)
        order = torch.argsort((~same).int(), dim=1, stable=True)
        sizes = same.sum(1)
        return cls(order[:, : int(sizes.max())], sizes)

    def others(self, codes: Tensor, draws: Tensor) -> Tensor:
        """``(B,)`` another code of the cluster of each of `codes` ``(B,)``, by `draws` ``(B,)`` in [0, 1)."""
        sizes = self.sizes[codes]
        place = torch.minimum((draws * sizes).long(), sizes - 1)
        return self.members[codes].gather(1, place[:, None])[:, 0]


def cluster_sizes(codes: int, clusters: int) -> tuple[int, int, int]:
    """Clusters, and members of one at least and at most.

    The released code has ``min(K // 20, 10)`` and ``6 * 10`` for 10 clusters of K codes; fewer clusters where
    K is so small that a cluster would have a single member, which would leave nothing to sample.

    >>> cluster_sizes(256, 10), cluster_sizes(8, 10)
    ((10, 10, 60), (4, 2, 24))
    """
    clusters = max(1, min(clusters, codes // 2))
    smallest = max(2, min(codes // (2 * clusters), 10))
    return clusters, smallest, max(6 * clusters, -(-codes // clusters))


def collaborative_loss(quantized: Tensor, collaborative: Tensor, domains: Tensor) -> Tensor:
    """L_CF of quantized latents and collaborative vectors ``(B, d)``; items of other domains, whose vectors
    come from another model, are no negatives: `domains` ``(B,)``."""
    with torch.autocast(quantized.device.type, enabled=False):
        scores = quantized.float() @ collaborative.float().T
    scores = scores.masked_fill(domains[:, None] != domains[None, :], -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def diversity_loss(chosen: Tensor, codebook: Tensor, codes: Tensor, others: Tensor) -> Tensor:
    """L_Div of one level.

    Args:
        chosen: ``(B, d)`` code vectors of the batch, with gradient.
        codebook: ``(K, d)``.
        codes: ``(B,)`` their indices, which are excluded.
        others: ``(B,)`` the sampled e_+.
    """
    with torch.autocast(chosen.device.type, enabled=False):
        scores = chosen.float() @ codebook.float().T
    own = F.one_hot(codes, len(codebook)).bool()
    return F.cross_entropy(scores.masked_fill(own, -torch.inf), others)


class LetterNetwork(RQVAENetwork):
    """An RQ-VAE with LETTER's losses, and in training a balanced assignment at the last level.

    Args:
        alpha: Weight of L_CF; 0 leaves it out.
        beta_diversity: Weight of L_Div; 0 leaves it out.
        epsilon: Temperature of the Sinkhorn assignment of the last level; None assigns the nearest.
        iterations: Its iterations.
        constrained: Place the codebooks by constrained k-means instead of plain k-means.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        latent: int,
        levels: int,
        codebook_size: int,
        *,
        alpha: float,
        beta_diversity: float,
        epsilon: float | None,
        iterations: int,
        constrained: bool,
        **quantizer: Any,
    ) -> None:
        super().__init__(width, hidden, latent, levels, codebook_size, **quantizer)
        self.alpha, self.beta_diversity = alpha, beta_diversity
        self.epsilon, self.iterations, self.constrained = epsilon, iterations, constrained

    def losses(
        self,
        vectors: Tensor,
        collaborative: Tensor | None,
        domains: Tensor,
        clusters: Sequence[CodeClusters],
        draws: Tensor,
    ) -> LetterLosses:
        """Losses of a batch.

        Args:
            vectors: ``(B, D)`` normalised content vectors.
            collaborative: ``(B, d)``; None where alpha is 0.
            domains: ``(B,)`` number of each item's domain.
            clusters: Those of each level's codes; empty where the weight of L_Div is 0.
            draws: ``(L, B)`` random numbers in [0, 1) that choose e_+.
        """
        base, quantized, chosen = self.pass_through(vectors)
        agreement, diversity, total = base.total.new_zeros(()), base.total.new_zeros(()), base.total
        if collaborative is not None:
            agreement = collaborative_loss(quantized, collaborative, domains)
            total = total + self.alpha * agreement
        if clusters:
            for level, (found, group) in enumerate(zip(chosen, clusters, strict=True)):
                others = group.others(found.codes, draws[level])
                diversity = diversity + diversity_loss(
                    found.vectors, self.codebook(level).weight, found.codes, others
                )
            total = total + self.beta_diversity * diversity
        return LetterLosses(total, base.reconstruction, base.quantization, agreement, diversity)

    def assign(self, level: int, rest: Tensor) -> Tensor | None:
        """The last level of a training batch is shared out evenly among its codes."""
        if self.epsilon is None or not self.training or level + 1 < len(self.codebooks):
            return None
        with torch.no_grad():
            distances = squared_distances(rest.detach(), self.codebook(level).weight)
            return sinkhorn(distances, self.epsilon, self.iterations).argmax(1)

    @torch.no_grad()
    def initialise(self, vectors: Tensor, seed: int) -> None:
        """Place the codebooks level by level on the latents of ``(N, D)``."""
        if not self.constrained:
            super().initialise(vectors, seed)
            return
        rest = self.encoder(vectors)
        for level in range(len(self.codebooks)):
            weight = self.codebook(level).weight
            smallest = min(len(rest) // (2 * len(weight)), 10)
            largest = max(6 * len(weight), -(-len(rest) // len(weight)))
            found = constrained_kmeans(rest, len(weight), smallest, largest, seed=seed + level)
            self.codebook(level)._place(torch.arange(len(weight)), found.centroids)
            rest = rest - self._chosen(rest, level)


def clusters_of(network: LetterNetwork, clusters: int, seed: int) -> list[CodeClusters]:
    """The clusters of every level's code vectors, for one epoch."""
    return [CodeClusters.of(weight, clusters, seed + level) for level, weight in enumerate(network.weights)]
