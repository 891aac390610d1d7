"""Product quantization with a rotation, against slow loops, scikit-learn's PCA and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from catalex.quantize.kmeans import kmeans
from catalex.quantize.opq import (
    ProductQuantizer,
    assign,
    balanced_axes,
    chosen,
    optimized_product_quantizer,
    product_round,
    product_start,
)


def mixed(count: int = 600, width: int = 8, seed: int = 0) -> Tensor:
    """Clustered vectors whose variance lies mostly in a few oblique directions."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, width, generator=random) * torch.logspace(1, -1, width)
    oblique, _ = torch.linalg.qr(torch.randn(width, width, generator=random))
    rows = centres[torch.randint(0, 12, (count,), generator=random)]
    return torch.mm(rows + 0.3 * torch.randn(count, width, generator=random), oblique)


def error(found: ProductQuantizer, vectors: Tensor) -> float:
    return float((vectors - found.decode(found.encode(vectors))).square().sum(1).mean())


def test_distances_are_those_of_a_loop_over_slices_and_codes() -> None:
    random = torch.Generator().manual_seed(1)
    rotated, books = torch.randn(5, 6, generator=random), torch.randn(3, 4, 2, generator=random)
    found = ProductQuantizer(torch.zeros(6), torch.eye(6), books)
    codes = assign(rotated, books)
    np.testing.assert_array_equal(codes, found.encode(rotated))
    for m in range(3):
        table = found.distances(rotated, m)
        assert table.shape == (5, 4)
        np.testing.assert_array_equal(codes[:, m], table.argmin(1))
        for n in range(5):
            for k in range(4):
                slow = (rotated[n, 2 * m : 2 * m + 2] - books[m, k]).square().sum()
                assert table[n, k] == pytest.approx(float(slow), abs=1e-5)
    for n in range(5):
        beside = torch.cat([books[m, codes[n, m]] for m in range(3)])
        torch.testing.assert_close(chosen(codes, books)[n], beside)
    assert assign(rotated[:0], books).shape == (0, 3)


def test_the_squared_error_is_the_sum_of_the_chosen_distances() -> None:
    """Rotations keep lengths, so nothing is lost between the slices and the vectors."""
    vectors = mixed()
    found = product_start(vectors, 4, 6, seed=0)
    least = torch.stack([found.distances(vectors, m).amin(1) for m in range(4)], 1).sum(1)
    direct = (vectors - found.decode(found.encode(vectors))).square().sum(1)
    torch.testing.assert_close(least, direct, rtol=1e-3, atol=1e-3)


def test_rounds_never_raise_the_error_and_the_rotation_stays_orthogonal() -> None:
    vectors = mixed()
    found = product_start(vectors, 4, 6, seed=0)
    errors = [error(found, vectors)]
    for _ in range(8):
        found, told = product_round(vectors, found)
        assert told == pytest.approx(error(found, vectors), rel=1e-4)
        errors.append(told)
        torch.testing.assert_close(found.rotation.T @ found.rotation, torch.eye(8), rtol=0, atol=1e-5)
    assert (np.diff(errors) <= 1e-5 * errors[0]).all()
    assert errors[-1] < 0.98 * errors[0]


def test_the_rotation_beats_slices_as_they_come() -> None:
    vectors = mixed()
    plain = product_start(vectors, 4, 6, seed=0)
    parts = (vectors - vectors.mean(0)).chunk(4, dim=1)
    books = [kmeans(part.contiguous(), 6, seed=m).centroids for m, part in enumerate(parts)]
    without = ProductQuantizer(vectors.mean(0), torch.eye(8), torch.stack(books))
    rotated = optimized_product_quantizer(vectors, 4, 6, seed=0)
    assert error(rotated, vectors) < error(plain, vectors) < error(without, vectors)


def test_axes_are_the_principal_ones_shared_out_evenly() -> None:
    from sklearn.decomposition import PCA

    vectors = mixed(width=6)
    centred = (vectors - vectors.mean(0)).float()
    axes = balanced_axes(centred, torch.full((600,), 1 / 600, dtype=torch.float64), 3)
    variances = (centred @ axes).square().mean(0)
    expected = PCA().fit(vectors.numpy()).explained_variance_ * 599 / 600
    np.testing.assert_allclose(np.sort(variances)[::-1], expected, rtol=1e-3)
    products = variances.view(3, 2).log().sum(1)
    sorted_products = variances.sort(descending=True).values.view(3, 2).log().sum(1)
    assert products.max() - products.min() < 0.5 * (sorted_products.max() - sorted_products.min())


def test_weights_count_like_copies() -> None:
    vectors = mixed(200)
    weights = torch.ones(200)
    weights[:50] = 3
    found = product_start(vectors, 2, 5, seed=0)
    copies = torch.cat([vectors, vectors[:50], vectors[:50]])
    heavy, one = product_round(vectors, found, weights=weights)
    many, other = product_round(copies, found)
    torch.testing.assert_close(heavy.codebooks, many.codebooks, rtol=1e-3, atol=1e-3)
    assert one == pytest.approx(other, rel=1e-3)


def test_a_code_that_nothing_is_nearest_to_stays_where_it_is() -> None:
    vectors = mixed(100)
    found = product_start(vectors, 2, 5, seed=0)
    books = found.codebooks.clone()
    books[0, 3] = 1e4
    moved, _ = product_round(vectors, ProductQuantizer(found.mean, found.rotation, books))
    torch.testing.assert_close(moved.codebooks[0, 3], books[0, 3])
    assert torch.isfinite(moved.codebooks).all()


def test_it_is_as_good_as_faiss() -> None:
    """Faiss does the same from a random rotation; errors of the two agree within a few percent."""
    faiss = pytest.importorskip("faiss", reason="needs the package faiss-cpu")
    vectors = mixed(2000, 16, seed=3)
    theirs = faiss.OPQMatrix(16, 4)
    data = (vectors - vectors.mean(0)).numpy()
    theirs.train(data)
    turned = theirs.apply(data)
    quantizer = faiss.ProductQuantizer(16, 4, 4)
    quantizer.train(turned)
    expected = float(np.square(turned - quantizer.decode(quantizer.compute_codes(turned))).sum(1).mean())
    ours = error(optimized_product_quantizer(vectors, 4, 16, seed=0, rounds=50), vectors)
    assert ours < 1.1 * expected
