"""How much one set of vectors tells about another: HSIC with Gaussian kernels, and its normalised form CKA.

HSIC (Gretton et al. 2005, "Measuring Statistical Dependence with Hilbert-Schmidt Norms", biased estimator)
is 0 for independent variables and grows with dependence of any kind, linear or not. UniTok (2511.12922)
calls ``I_k = HSIC(content vectors, latent vectors)`` the information that the latents of domain k keep, and
trains with the variance and the mean of I_k over the domains.

Two properties to know before comparing numbers:

- The value depends on the number of items n, so domains are compared only at equal n (`domain_information`).
- It depends on the bandwidth. A fixed one fails: 64 standard normal rows of width 768 with bandwidth 1 have
  nearly orthogonal Gram rows, and HSIC is 1/63 whatever the other vectors are. The median of the pairwise
  distances is therefore the default, taken separately for each set of vectors and without gradient.

Legend: ``...`` any leading dimensions (the training step stacks K domains of equal n), ``n`` items, ``D`` and
``d`` widths. Computed in float32, or in float64 when given float64, also under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor

Bandwidth = float | Tensor | None
"""s of the kernel: a positive number, one number for each leading index ``(...)``, or None for the median of
the pairwise distances."""

SIZE = 512
"""Items of one draw of `domain_information`."""
DRAWS = 5
"""Draws that `domain_information` averages."""
FEWEST = 8
"""Items below which a dependence is not estimated: so few values say little and their median distance
jumps."""


def median_distance(x: Tensor) -> Tensor:
    """``(...)`` median distance between two different rows of ``(..., n, D)``, without gradient, never 0.

    Of an even number of distances the lower of the middle two. When more than half of the pairs coincide the
    mean distance takes its place; when all rows are equal, 1.

    Raises:
        ValueError: When there are fewer than two rows.
    """
    with torch.no_grad():
        return _median_square(_squared_distances(_real(x))).sqrt()


def gram(x: Tensor, bandwidth: Bandwidth = None) -> Tensor:
    """Gaussian Gram matrix ``(..., n, n)`` of rows ``(..., n, D)``: ``exp(-|x_i - x_j|^2 / (2 s^2))``.

    Differentiable in x; s is a constant, given or the median distance. The squared distance is used
    throughout, so no gradient passes through a square root at 0.

    Raises:
        ValueError: When there are fewer than two rows or the bandwidth is not positive.
    """
    squares = _squared_distances(_real(x))
    if bandwidth is None:
        variance = _median_square(squares.detach())
    else:
        if not isinstance(bandwidth, Tensor) and not bandwidth > 0:
            raise ValueError(f"the bandwidth of a Gaussian kernel must be positive, not {bandwidth}")
        given = torch.as_tensor(bandwidth, dtype=squares.dtype, device=squares.device).detach()
        variance = given.square().clamp(min=torch.finfo(squares.dtype).tiny)
    return torch.exp(squares / (-2 * variance[..., None, None]))


def hsic(
    x: Tensor, z: Tensor, bandwidth_x: Bandwidth = None, bandwidth_z: Bandwidth = None
) -> Tensor:  # fmt: skip
    """``Tr(U H V H) / (n - 1)^2`` of rows ``(..., n, D)`` and ``(..., n, d)``: ``(...)``, at least 0.

    U and V are the Gram matrices, H = I - 11^T/n centres them. H is idempotent, so the trace is the sum of
    the elementwise product of both centred matrices, which costs n^2.

    Differentiable in x and z. Symmetric, unchanged when the rows of both are permuted alike, 0 when all rows
    of one are equal.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(float(hsic(x, x, 1, 1)), 5)
    0.20088

    Raises:
        ValueError: When there are fewer than two rows or x and z differ in their numbers of rows.
    """
    _check_pairs(x, z)
    return _covariance(_centred(gram(x, bandwidth_x)), _centred(gram(z, bandwidth_z)))


def cka(
    x: Tensor, z: Tensor, bandwidth_x: Bandwidth = None, bandwidth_z: Bandwidth = None
) -> Tensor:  # fmt: skip
    """Normalised HSIC ``HSIC(x, z) / sqrt(HSIC(x, x) HSIC(z, z))`` in [0, 1]: ``(...)``.

    Centred kernel alignment (Cortes et al. 2012; Kornblith et al. 2019). Unlike HSIC it cannot be raised by
    the scale of a Gram matrix alone. 0, with gradient 0, when all rows of x or of z are equal.

    Raises:
        ValueError: As `hsic`.
    """
    _check_pairs(x, z)
    u, v = _centred(gram(x, bandwidth_x)), _centred(gram(z, bandwidth_z))
    value = _covariance(u, v) * _inverse_root(_covariance(u, u)) * _inverse_root(_covariance(v, v))
    return value.clamp(max=1)  # where rounding exceeds it


def domain_information(
    x: Tensor, z: Tensor, *, seed: int = 0, size: int = SIZE, draws: int = DRAWS, normalised: bool = False
) -> float | None:
    """Dependence between content vectors ``(N, D)`` and latent vectors ``(N, d)`` of one domain's items.

    Args:
        x: Content vectors.
        z: Latent vectors of the same items.
        seed: Fixes the items drawn.
        size: n, items drawn without replacement; domains are comparable only at equal n. Fewer items than
            that: all of them, once.
        draws: Draws, of which the mean is returned. 5 draws of 512: metrics as agreed for all tokenizers.
        normalised: CKA instead of HSIC.

    Returns:
        A finite number, or None when there are fewer than `FEWEST` items.

    Raises:
        ValueError: When x and z differ in their numbers of rows.
    """
    if len(x) != len(z):
        raise ValueError(f"one latent vector an item is needed, got {len(z)} for {len(x)} items")
    if min(len(x), size) < FEWEST:
        return None
    measure = cka if normalised else hsic
    with torch.no_grad():
        if len(x) <= size:
            return float(measure(x, z))
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randperm(len(x), generator=generator)[:size] for _ in range(draws)]
        found = [measure(x[chosen.to(x.device)], z[chosen.to(z.device)]) for chosen in rows]
    return float(torch.stack(found).double().mean())


def _real(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_pairs(x: Tensor, z: Tensor) -> None:
    if x.shape[-2] != z.shape[-2]:
        raise ValueError(f"HSIC compares equally many rows, got {x.shape[-2]} and {z.shape[-2]}")


def _squared_distances(x: Tensor) -> Tensor:
    """``(..., n, n)`` squared distances between rows, exactly 0 on the diagonal and for equal rows."""
    if x.shape[-2] < 2:
        raise ValueError(f"pairwise distances need at least 2 rows, got {x.shape[-2]}")
    # Distances do not change when all rows are moved; near the origin the product below loses fewer digits.
    # The first row goes first, so that equal rows become exactly 0.
    x = x - x[..., :1, :].detach()
    x = x - x.mean(-2, keepdim=True).detach()
    with torch.autocast(x.device.type, enabled=False):
        product = x @ x.mT
    norms = x.square().sum(-1)
    sums = norms[..., :, None] + norms[..., None, :]
    squares = sums - 2 * product
    # What remains between equal rows is rounding, which a median of it would blow up to a distance.
    rounding = 16 * torch.finfo(x.dtype).eps * sums.detach()
    return torch.where(squares.detach() > rounding, squares, 0.0)


def _median_square(squares: Tensor) -> Tensor:
    """``(...)`` the square of the median distance, with the replacements of `median_distance`."""
    n = squares.shape[-1]
    rows, columns = torch.triu_indices(n, n, 1, device=squares.device)
    pairs = squares[..., rows, columns]
    tiny = torch.finfo(squares.dtype).tiny
    median = pairs.median(-1).values
    mean = pairs.sqrt().mean(-1).square()
    usable = torch.where(mean > tiny, mean, 1.0)
    return torch.where(median > tiny, median, usable)


def _centred(matrix: Tensor) -> Tensor:
    """``H M H`` of symmetric matrices ``(..., n, n)``."""
    rows = matrix.mean(-1, keepdim=True)
    return matrix - rows - rows.mT + rows.mean(-2, keepdim=True)


def _covariance(u: Tensor, v: Tensor) -> Tensor:
    """HSIC from centred Gram matrices ``(..., n, n)``. Rounding may not turn it negative."""
    return ((u * v).sum((-2, -1)) / (u.shape[-1] - 1) ** 2).clamp(min=0)


def _inverse_root(values: Tensor) -> Tensor:
    """``1 / sqrt(v)``, and 0 with gradient 0 where v is 0."""
    positive = values > torch.finfo(values.dtype).tiny
    return torch.where(positive, torch.where(positive, values, 1.0).rsqrt(), 0.0)
