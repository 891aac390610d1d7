"""Product quantization: a vector is rotated, cut into M slices, and each slice quantized by a codebook of its
own.

Unlike residual quantization the M codes do not depend on each other. How well it works depends on how the
variance lies in the slices, hence the rotation: optimized product quantization (Ge, He, Ke and Sun 2013)
alternates between the codebooks and an orthogonal rotation in closed form. Faiss calls this ``OPQM,PQMx8``.

Shape letters: N vectors, D width, M slices, d = D / M width of a slice, K codes of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from catalex.quantize.distances import lowest, nearest, passes, squared_distances
from catalex.quantize.kmeans import cluster_means, kmeans
from catalex.quantize.procrustes import procrustes

LEAST_VARIANCE = 1e-9
"""Smallest eigenvalue that counts, as a share of the largest: its logarithm has to exist."""


@dataclass(frozen=True)
class ProductQuantizer:
    """A rotation and M codebooks. All tensors are float32 on one device.

    Attributes:
        mean: ``(D,)`` subtracted first.
        rotation: ``(D, D)`` orthogonal.
        codebooks: ``(M, K, d)`` with M d = D.
    """

    mean: Tensor
    rotation: Tensor
    codebooks: Tensor

    def rotate(self, vectors: Tensor) -> Tensor:
        """``(N, D)`` centred and rotated vectors of ``(N, D)``."""
        with torch.autocast(vectors.device.type, enabled=False):
            return (vectors.float() - self.mean) @ self.rotation

    def distances(self, vectors: Tensor, slice_: int) -> Tensor:
        """``(N, K)`` squared distances of slice `slice_` of vectors ``(N, D)`` to its code vectors."""
        return squared_distances(self._slices(self.rotate(vectors))[slice_], self.codebooks[slice_])

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes ``(N, M)`` int64 of vectors ``(N, D)``: the nearest code vector of every slice by
        `distances`, ties to the lowest."""
        slices = self._slices(self.rotate(vectors))
        tables = (squared_distances(part, book) for part, book in zip(slices, self.codebooks, strict=True))
        return torch.stack([lowest(table) for table in tables], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """``(N, D)`` vectors of codes ``(N, M)``."""
        return chosen(codes, self.codebooks) @ self.rotation.T + self.mean

    def _slices(self, rotated: Tensor) -> list[Tensor]:
        """M tensors ``(N, d)``."""
        return [part.contiguous() for part in rotated.chunk(len(self.codebooks), dim=1)]

    def to(self, device: str) -> ProductQuantizer:
        """The same on another device."""
        return ProductQuantizer(self.mean.to(device), self.rotation.to(device), self.codebooks.to(device))


# --- learning -----------------------------------------------------------------------------------------------


def product_start(
    vectors: Tensor,
    slices: int,
    codes: int,
    *,
    seed: int,
    iterations: int = 25,
    weights: Tensor | None = None,
) -> ProductQuantizer:
    """The parametric solution: principal axes shared out among the slices, then k-means in each slice.

    Args:
        vectors: ``(N, D)`` with D divisible by `slices` and N >= `codes`.
        slices: M.
        codes: K.
        seed: Fixes the starts of k-means.
        iterations: Largest number of Lloyd iterations a slice.
        weights: ``(N,)`` weight of each vector; None weighs all alike.
    """
    share = _shares(vectors, weights)
    mean = (share @ vectors.double()).float()
    rotation = balanced_axes(vectors.float() - mean, share, slices)
    rotated = (vectors.float() - mean) @ rotation
    mass = None if weights is None else weights
    books = [
        kmeans(part.contiguous(), codes, seed=seed + m, iterations=iterations, weights=mass).centroids
        for m, part in enumerate(rotated.chunk(slices, dim=1))
    ]
    return ProductQuantizer(mean, rotation, torch.stack(books))


def product_round(
    vectors: Tensor, found: ProductQuantizer, *, iterations: int = 4, weights: Tensor | None = None
) -> tuple[ProductQuantizer, float]:
    """One round of OPQ: the best rotation for the codes (Procrustes), then Lloyd iterations in all slices.

    Neither half can raise the error, so rounds never make it worse but for rounding.

    Returns:
        What came out, and its mean squared error.
    """
    share = _shares(vectors, weights)
    centred = vectors.float() - found.mean
    wanted = chosen(assign(centred @ found.rotation, found.codebooks), found.codebooks)
    root = share.sqrt().float()[:, None]
    rotation = procrustes((centred * root).cpu(), (wanted * root).cpu()).float().to(vectors.device)
    rotated = centred @ rotation
    books = found.codebooks
    for _ in range(iterations):
        books = _moved(rotated, assign(rotated, books), books, share)
    found = replace(found, rotation=rotation, codebooks=books)
    left = (rotated - chosen(assign(rotated, books), books)).square().sum(1).double()
    return found, float(share @ left)


def optimized_product_quantizer(
    vectors: Tensor,
    slices: int,
    codes: int,
    *,
    seed: int,
    rounds: int = 20,
    weights: Tensor | None = None,
) -> ProductQuantizer:
    """`product_start` and then `rounds` times `product_round`."""
    found = product_start(vectors, slices, codes, seed=seed, weights=weights)
    for _ in range(rounds):
        found, _ = product_round(vectors, found, weights=weights)
    return found


def balanced_axes(centred: Tensor, share: Tensor, slices: int) -> Tensor:
    """``(D, D)`` principal axes of centred vectors ``(N, D)``, ordered so that every slice gets about the
    same product of variances (eigenvalue allocation, Ge et al. 2013, section 3.2).

    Each axis, the largest variance first, goes to the slice with room whose product is smallest so far.

    Args:
        centred: ``(N, D)``.
        share: ``(N,)`` float64 weights that sum to 1.
        slices: M, which divides D.
    """
    width = centred.shape[1]
    covariance = torch.zeros(width, width, dtype=torch.float64, device=centred.device)
    for rows, weight in passes(centred, share):
        covariance += (rows.double() * weight[:, None]).T @ rows.double()
    values, axes = torch.linalg.eigh(covariance.cpu())
    values = values.clamp(min=float(values.max().clamp(min=1e-30)) * LEAST_VARIANCE).log()
    values = values - values.min()  # at least 0, so that a fuller slice never has the smaller product
    axes = axes * torch.where(axes.gather(0, axes.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    buckets: list[list[int]] = [[] for _ in range(slices)]
    heights = [0.0] * slices
    for axis in reversed(range(width)):  # eigh gives the smallest first
        room = [m for m in range(slices) if len(buckets[m]) < width // slices]
        least = min(room, key=lambda m: (heights[m], m))
        buckets[least].append(axis)
        heights[least] += float(values[axis])
    order = torch.tensor([axis for bucket in buckets for axis in bucket])
    found: Tensor = axes.index_select(1, order)
    return found.float().to(centred.device)


# --- arithmetic of slices -----------------------------------------------------------------------------------


def assign(rotated: Tensor, codebooks: Tensor) -> Tensor:
    """``(N, M)`` nearest code of every slice of rotated vectors ``(N, D)``."""
    parts = rotated.chunk(len(codebooks), dim=1)
    return torch.stack(
        [nearest(part.contiguous(), book) for part, book in zip(parts, codebooks, strict=True)], 1
    )


def chosen(codes: Tensor, codebooks: Tensor) -> Tensor:
    """``(N, D)`` the code vectors of codes ``(N, M)``, slice beside slice."""
    slices = torch.arange(len(codebooks), device=codes.device)
    return torch.flatten(codebooks[slices, codes], 1)


def _moved(rotated: Tensor, codes: Tensor, codebooks: Tensor, share: Tensor) -> Tensor:
    """``(M, K, d)`` weighted means of the slices that each code holds; a code that holds none stays."""
    parts = rotated.chunk(len(codebooks), dim=1)
    means = [cluster_means(part, codes[:, m], codebooks[m], share) for m, part in enumerate(parts)]
    return torch.stack(means)


def _shares(vectors: Tensor, weights: Tensor | None) -> Tensor:
    """``(N,)`` float64 weights that sum to 1."""
    mass = torch.ones(len(vectors)) if weights is None else weights
    mass = mass.double().to(vectors.device)
    return mass / mass.sum()
