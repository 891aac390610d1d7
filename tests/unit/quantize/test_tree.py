"""Tree-structured codebooks against direct formulas: residuals, codes, losses, gradients, start, restart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.quantize.tree import TreeCodebooks, inverse_prefix_residual, prefix_residual
from catalex.quantize.vq import Reduction
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.vocabulary import Vocabulary

LEVELS, ROOT, LEAF, WIDTH = 3, 6, 10, 4
KINDS: list[dict[str, Any]] = [
    {"residual": residual, "share_leaf": shared, "projected": projected}
    for residual, shared, projected in itertools.product(
        ("prefix", "quantized", "none"), (True, False), (True, False)
    )
]


def make(**options: Any) -> TreeCodebooks:
    return TreeCodebooks(LEVELS, ROOT, LEAF, WIDTH, **{"seed": 1, **options})


def vectors(count: int, seed: int = 0, scale: float = 0.5, levels: int = LEVELS) -> Tensor:
    return torch.randn(count, levels, WIDTH, generator=torch.Generator().manual_seed(seed)) * scale


def slow_codes(h: Tensor, trees: TreeCodebooks) -> tuple[Tensor, Tensor]:
    """Codes and restored vectors item by item, level by level, code by code, in float64."""
    books = [trees.codebook(level).detach().double().numpy() for level in range(trees.levels)]
    codes, restored = [], []
    for item in h.double().numpy():
        chosen: list[int] = []
        path: list[Any] = []
        for level, vector in enumerate(item):
            rest = vector
            if level and trees.residual == "prefix":
                rest = vector - item[level - 1]
            elif level and trees.residual == "quantized":
                rest = vector - path[-1]
            gaps = [((rest - code) ** 2).sum() for code in books[level]]
            chosen.append(int(np.argmin(gaps)))
            own = books[level][chosen[-1]]
            path.append(own if trees.residual == "none" or not level else path[-1] + own)
        codes.append(chosen)
        restored.append(np.stack(path))
    return torch.tensor(codes), torch.tensor(np.stack(restored)).float()


def gaps_between(a: Tensor, b: Tensor) -> Tensor:
    """``(n, m)`` distances by direct difference; `torch.cdist` loses digits where they are small."""
    return (a[:, None] - b).square().sum(2).sqrt()


# residuals


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 8)),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_running_sum_undoes_the_prefix_residual(shape: tuple[int, int, int], seed: int) -> None:
    h = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(inverse_prefix_residual(prefix_residual(h)), h, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(prefix_residual(inverse_prefix_residual(h)), h, atol=1e-5, rtol=1e-6)


def test_prefix_residual_by_hand() -> None:
    h = torch.tensor([[1.0, 2.0], [4.0, 1.0], [5.0, 5.0]])
    assert prefix_residual(h).tolist() == [[1, 2], [3, -1], [1, 4]]
    assert inverse_prefix_residual(h).tolist() == [[1, 2], [5, 3], [10, 8]]


def test_with_one_level_both_are_the_identity() -> None:
    h = vectors(5, levels=1)
    assert torch.equal(prefix_residual(h), h)
    assert torch.equal(inverse_prefix_residual(h), h)


def test_prefix_residual_is_linear_and_a_common_shift_reaches_level_one_only() -> None:
    a, b = vectors(7, 1), vectors(7, 2)
    torch.testing.assert_close(prefix_residual(2 * a - b), 2 * prefix_residual(a) - prefix_residual(b))
    shift = vectors(1, 3)[:, :1]
    moved = prefix_residual(a + shift) - prefix_residual(a)
    torch.testing.assert_close(moved[:, 0], shift.expand(7, 1, WIDTH)[:, 0])
    torch.testing.assert_close(moved[:, 1:], torch.zeros(7, LEVELS - 1, WIDTH), atol=1e-6, rtol=0)


# codebooks


def test_codebook_is_base_times_projection() -> None:
    trees = make()
    book = trees.book(1)
    assert book.projection is not None
    assert not torch.allclose(book.projection, book.projection.T)  # or the transpose would go unnoticed
    expected = torch.einsum("kd,de->ke", book.base, book.projection)
    torch.testing.assert_close(trees.codebook(1), expected)
    assert not torch.allclose(trees.codebook(1), torch.einsum("kd,ed->ke", book.base, book.projection))


def test_start_has_the_stated_spread_and_follows_the_seed() -> None:
    trees = TreeCodebooks(3, 256, 512, 128, seed=3)
    for book in (trees.book(0), trees.book(1)):
        assert book.base.std().item() == pytest.approx(128**-0.5, rel=0.02)
        assert book.projection is not None
        assert book.projection.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)
        assert book.projection.std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.02)
    torch.manual_seed(99)
    again = TreeCodebooks(3, 256, 512, 128, seed=3)
    assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(99).get_state())  # its own generator
    assert all(torch.equal(a, b) for a, b in zip(trees.parameters(), again.parameters(), strict=True))
    other = TreeCodebooks(3, 256, 512, 128, seed=4)
    assert not torch.equal(trees.codebook(0), other.codebook(0))


def test_levels_behind_the_first_share_one_leaf() -> None:
    trees = make()
    assert trees.book(1) is trees.book(2)
    assert trees.book(0) is not trees.book(1)
    assert trees.sizes == (ROOT, LEAF, LEAF)
    assert trees.groups == (0, 1, 1)
    assert sum(p.numel() for p in trees.parameters()) == (ROOT + LEAF) * WIDTH + 2 * WIDTH**2


def test_parameter_count_of_the_ablations() -> None:
    def count(**options: Any) -> int:
        return sum(p.numel() for p in make(**options).parameters())

    assert make(share_leaf=False).groups == (0, 1, 2)
    assert count(share_leaf=False) == (ROOT + 2 * LEAF) * WIDTH + 3 * WIDTH**2
    assert count(projected=False) == (ROOT + LEAF) * WIDTH
    assert count(share_leaf=False, projected=False) == (ROOT + 2 * LEAF) * WIDTH


def test_tokens_of_leaf_levels_share_one_range() -> None:
    trees = make()
    vocabulary = Vocabulary(CodeSpace(trees.sizes, trees.groups))
    tokens = trees.encode(vectors(2000, scale=2.0)).numpy() + vocabulary.offsets - vocabulary.offsets[0]
    assert tokens.min() >= 0
    assert tokens.max() < ROOT + LEAF
    assert vocabulary.offsets[1] == vocabulary.offsets[2] == vocabulary.offsets[0] + ROOT


# codes and restored vectors


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_restored_vectors_equal_a_slow_search(kind: dict[str, Any]) -> None:
    trees, h = make(**kind), vectors(60)
    found = trees(h)
    codes, restored = slow_codes(h, trees)
    assert found.codes.dtype == torch.int64
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.restored, restored, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(trees.restore(codes), restored, atol=1e-6, rtol=1e-5)
    assert torch.equal(trees.encode(h), codes)
    assert codes[:, 1:].unique().numel() > 3  # a search that always says 0 would not pass


def test_prefix_restores_the_running_sum_of_codes() -> None:
    trees, h = make(), vectors(20)
    codes = trees(h).codes
    chosen = torch.stack([trees.codebook(level)[codes[:, level]] for level in range(LEVELS)], 1)
    torch.testing.assert_close(trees.restore(codes), inverse_prefix_residual(chosen).detach())
    torch.testing.assert_close(trees.restore(codes[:, :2]), inverse_prefix_residual(chosen)[:, :2].detach())


def test_prefix_subtracts_the_continuous_vector_and_so_differs_from_residual_quantization() -> None:
    h = vectors(60)
    ours, theirs = make(residual="prefix").encode(h), make(residual="quantized").encode(h)
    assert torch.equal(ours[:, 0], theirs[:, 0])
    assert not torch.equal(ours[:, 1:], theirs[:, 1:])


@pytest.mark.parametrize("kind", KINDS)
def test_distances_level_after_level_give_the_codes(kind: dict[str, Any]) -> None:
    trees, h = make(**kind), vectors(300)
    codes = trees.encode(h)
    prefix = torch.zeros(300, 0, dtype=torch.int64)
    for level in range(LEVELS):
        table = trees.distances(h, prefix)
        assert table.shape == (300, trees.sizes[level])
        assert torch.equal(table.argmin(1), codes[:, level])
        prefix = torch.cat([prefix, table.argmin(1, keepdim=True)], 1)


@pytest.mark.parametrize("residual", ["prefix", "quantized", "none"])
def test_distances_are_squared_and_know_the_prefix(residual: str) -> None:
    trees, h = make(residual=residual), vectors(9)
    prefix = torch.arange(18).view(9, 2) % ROOT
    before = {"prefix": h[:, 1], "quantized": trees.restore(prefix)[:, 1], "none": torch.zeros(9, WIDTH)}
    rest = h[:, 2] - before[residual]
    expected = (rest[:, None] - trees.codebook(2).detach()).square().sum(2)
    torch.testing.assert_close(trees.distances(h, prefix), expected, atol=1e-5, rtol=1e-5)
    other = trees.distances(h, (prefix + 1) % ROOT)
    assert torch.equal(other, trees.distances(h, prefix)) is (residual != "quantized")


def test_codes_and_distances_do_not_depend_on_batching() -> None:
    trees = TreeCodebooks(3, 32, 64, 16, seed=0, residual="quantized")
    h = torch.randn(333, 3, 16, generator=torch.Generator().manual_seed(5)) * 0.4
    codes = trees.encode(h)
    table = trees.distances(h, codes[:, :2])
    for size in (1, 7, 100):
        assert torch.equal(torch.cat([trees.encode(part) for part in h.split(size)]), codes)
        pairs = zip(h.split(size), codes.split(size), strict=True)
        assert torch.equal(torch.cat([trees.distances(part, own[:, :2]) for part, own in pairs]), table)


def test_no_items_at_all() -> None:
    trees, none = make(), vectors(0)
    assert trees.encode(none).shape == (0, LEVELS)
    assert trees.distances(none, torch.zeros(0, 1, dtype=torch.int64)).shape == (0, LEAF)
    assert trees.restore(torch.zeros(0, LEVELS, dtype=torch.int64)).shape == (0, LEVELS, WIDTH)
    found = trees(none)
    assert found.restored.shape == (0, LEVELS, WIDTH)
    assert found.losses.tolist() == [0, 0, 0]


def test_ties_go_to_the_lowest_code() -> None:
    trees = make(projected=False)
    with torch.no_grad():
        trees.book(0).base[4] = trees.book(0).base[2]
    h = trees.book(0).base[[4]].detach()[:, None].expand(1, LEVELS, WIDTH)
    assert trees.encode(h)[0, 0].item() == 2
    assert trees(h).codes[0, 0].item() == 2


def test_one_level_is_plain_quantization() -> None:
    trees = TreeCodebooks(1, ROOT, LEAF, WIDTH, seed=0)
    h = vectors(20, levels=1)
    found = trees(h)
    assert trees.sizes == (ROOT,)
    assert trees.groups == (0,)
    torch.testing.assert_close(found.restored[:, 0], trees.codebook(0)[found.codes[:, 0]].detach())
    reductions: tuple[Reduction, ...] = ("mean", "sum")
    for reduction in reductions:
        assert trees.codebook_loss(found.losses, reduction) == found.losses[0]


def test_autocast_changes_nothing_for_the_same_input() -> None:
    trees = TreeCodebooks(3, 64, 128, 32, seed=0)
    h = torch.randn(500, 3, 32, generator=torch.Generator().manual_seed(5)) * 0.3 + 5.0  # rounding would show
    plain = trees(h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # autocast is at work
        cast = trees(h)
        codes, table = trees.encode(h), trees.distances(h, plain.codes[:, :1])
    for ours, theirs in zip(cast, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert torch.equal(codes, trees.encode(h))
    assert torch.equal(table, trees.distances(h, plain.codes[:, :1]))


def test_bf16_vectors_are_quantized_in_float32() -> None:
    trees, h = make(), vectors(50).bfloat16()
    found = trees(h)
    assert found.restored.dtype == found.losses.dtype == torch.float32
    assert torch.equal(found.codes, slow_codes(h.float(), trees)[0])
    assert torch.equal(found.losses, trees(h.float()).losses)  # differences of levels are not rounded to bf16


# loss


@pytest.mark.parametrize("kind", KINDS)
def test_loss_of_each_level_is_the_formula(kind: dict[str, Any]) -> None:
    trees, h = make(beta=0.4, **kind), vectors(30)
    found = trees(h)
    restored = trees.restore(found.codes)
    shifted = torch.zeros_like(h)
    if trees.residual != "none":
        shifted[:, 1:] = (h if trees.residual == "prefix" else restored)[:, :-1]
    for level in range(LEVELS):
        rest = h[:, level] - shifted[:, level]
        code = trees.codebook(level)[found.codes[:, level]].detach()
        expected = 1.4 * (rest - code).square().mean()
        torch.testing.assert_close(found.losses[level], expected, atol=1e-6, rtol=1e-5)


def test_reductions() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])
    trees = make()
    assert trees.codebook_loss(losses, "sum").item() == 9
    assert trees.codebook_loss(losses, "mean").item() == pytest.approx((1 + 4) / 2)


def test_loss_is_zero_when_residuals_sit_on_codes() -> None:
    trees = make()
    codes = torch.randint(0, ROOT, (12, LEVELS), generator=torch.Generator().manual_seed(0))
    found = trees(trees.restore(codes))
    assert torch.equal(found.codes, codes)
    assert found.losses.max().item() < 1e-10


# gradients


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_reach_the_encoder_unchanged_and_no_codebook(kind: dict[str, Any]) -> None:
    trees, h = make(**kind), vectors(20).requires_grad_()
    weights = vectors(20, 9)
    (trees(h).restored * weights).sum().backward()
    torch.testing.assert_close(h.grad, weights)
    assert all(p.grad is None or not p.grad.any() for p in trees.parameters())


def test_straight_through_equals_that_of_each_residual() -> None:
    """q~ = r + sg(q - r), summed up: the detour over residuals gives the same value and gradient."""
    trees, h, weights = make(), vectors(20).requires_grad_(), vectors(20, 9)
    found = trees(h)
    rest = prefix_residual(h)
    chosen = torch.stack([trees.codebook(n)[found.codes[:, n]] for n in range(LEVELS)], 1)
    slow = inverse_prefix_residual(rest + (chosen - rest).detach())
    torch.testing.assert_close(found.restored, slow, atol=1e-6, rtol=1e-5)
    fast_grad = torch.autograd.grad((found.restored.square() * weights).sum(), h, retain_graph=True)[0]
    slow_grad = torch.autograd.grad((slow.square() * weights).sum(), h)[0]
    torch.testing.assert_close(fast_grad, slow_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", ["prefix", "quantized", "none"])
def test_codebook_loss_reaches_c_and_w_and_the_vectors_by_beta(residual: str) -> None:
    gradients = {}
    for beta in (0.0, 0.25):
        trees, h = make(beta=beta, residual=residual), vectors(20).requires_grad_()
        trees.codebook_loss(trees(h).losses, "mean").backward()
        assert h.grad is not None
        gradients[beta] = (h.grad, [p.grad for p in trees.parameters() if p.grad is not None])
        assert len(gradients[beta][1]) == 4
    assert not gradients[0.0][0].any()
    assert gradients[0.25][0].any()
    for plain, committed in zip(gradients[0.0][1], gradients[0.25][1], strict=True):
        assert committed.any()
        assert torch.equal(plain, committed)  # the commitment term moves the vectors alone


def test_loss_of_a_level_moves_no_other_codebook() -> None:
    for residual in ("prefix", "quantized", "none"):
        trees = make(residual=residual, share_leaf=False)
        trees(vectors(20)).losses[2].backward()
        for level in (0, 1):
            assert all(p.grad is None or not p.grad.any() for p in trees.book(level).parameters())
        assert trees.book(2).base.grad is not None


@pytest.mark.parametrize("residual", ["prefix", "quantized", "none"])
def test_gradient_of_the_loss_against_finite_differences(residual: str) -> None:
    trees = make(residual=residual, beta=0.0)
    h, step = vectors(30), 1e-3
    codes = trees(h).codes
    trees(h).losses.sum().backward()
    projection = trees.book(1).projection
    assert projection is not None
    assert projection.grad is not None

    # residuals as they are now, since the loss takes them as constants
    shifted = torch.zeros_like(h)
    if residual != "none":
        shifted[:, 1:] = (h if residual == "prefix" else trees.restore(codes))[:, :-1]

    def leaf_loss() -> float:
        gaps = [(h - shifted)[:, n] - trees.codebook(n)[codes[:, n]] for n in (1, 2)]
        return float(sum(gap.detach().double().square().mean() for gap in gaps))

    for row, column in ((0, 1), (1, 0), (3, 2)):
        with torch.no_grad():
            projection[row, column] += step
            above = leaf_loss()
            projection[row, column] -= 2 * step
            below = leaf_loss()
            projection[row, column] += step
        assert projection.grad[row, column].item() == pytest.approx((above - below) / (2 * step), abs=2e-4)


def one_step(trees: TreeCodebooks, h: Tensor, **options: Any) -> Tensor:
    """An AdamW step on the codebook loss; the codes that it selected."""
    optimizer = torch.optim.AdamW(trees.parameters(), lr=1e-2, **options)
    found = trees(h)
    trees.codebook_loss(found.losses, "mean").backward()
    optimizer.step()
    codes: Tensor = found.codes
    return codes


def test_frozen_bases_stay_while_every_code_moves() -> None:
    trees = make()
    trees(vectors(4)).losses.sum().backward()  # a gradient from before must not count either
    trees.freeze_bases()
    assert trees.frozen
    bases = [trees.book(level).base.clone() for level in range(2)]
    codes_before = [trees.codebook(level).detach() for level in range(2)]
    chosen = one_step(trees, vectors(1), weight_decay=0.01)
    assert chosen[:, 1:].unique().numel() < LEAF
    for level in range(2):
        assert torch.equal(trees.book(level).base, bases[level])
        changed = (trees.codebook(level) != codes_before[level]).any(1)
        assert changed.all()
    trees.freeze_bases(False)
    assert not trees.frozen
    one_step(trees, vectors(4))
    assert not torch.equal(trees.book(0).base, bases[0])


def test_plain_codebooks_move_chosen_codes_alone() -> None:
    trees = make(projected=False)
    before = [trees.codebook(level).detach().clone() for level in range(2)]
    chosen = one_step(trees, vectors(2), weight_decay=0.0)
    for level, own in enumerate((chosen[:, 0], chosen[:, 1:])):
        changed = (trees.codebook(level) != before[level]).any(1)
        expected = torch.zeros_like(changed)
        expected[own.flatten()] = True
        assert not expected.all()
        assert torch.equal(changed, expected)


# start by k-means


@pytest.mark.parametrize("kind", KINDS)
def test_kmeans_start_lowers_the_loss(kind: dict[str, Any]) -> None:
    trees, h = make(**kind), vectors(200)
    before = trees(h).losses
    trees.initialise(h, seed=2)
    assert (trees(h).losses < before).all()
    again = make(**{**kind, "seed": 7})
    again.initialise(h, seed=2)
    assert torch.equal(again.codebook(1), trees.codebook(1))  # nothing of the old codes is left


def test_kmeans_start_has_w_as_identity_and_places_codes_on_clusters() -> None:
    centres = torch.randn(ROOT, WIDTH, generator=torch.Generator().manual_seed(3)) * 10
    leaves = torch.randn(LEAF, WIDTH, generator=torch.Generator().manual_seed(4)) * 10
    generator = torch.Generator().manual_seed(5)
    roots = torch.arange(400) % ROOT
    below = torch.randint(0, LEAF, (400, 2), generator=generator)
    q = torch.stack([centres[roots], leaves[below[:, 0]], leaves[below[:, 1]]], 1)
    trees = make()
    trees.initialise(inverse_prefix_residual(q), seed=0)
    for level in range(2):
        projection = trees.book(level).projection
        assert projection is not None
        assert torch.equal(projection, torch.eye(WIDTH))
    for expected, level in ((centres, 0), (leaves, 1)):
        gaps = gaps_between(expected, trees.codebook(level).detach()).min(1).values
        assert gaps.max().item() < 1e-3
    assert trees(inverse_prefix_residual(q)).losses.max().item() < 1e-6


def test_start_with_fewer_vectors_than_codes_copies_them_with_little_noise() -> None:
    trees = TreeCodebooks(2, 50, 60, 64, seed=0)
    h = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(0))
    trees.initialise(h, seed=1)
    assert trees(h).losses.max().item() < 1e-10
    gaps = trees.codebook(0).detach() - h[:, 0][torch.arange(50) % 4]
    assert gaps[:4].abs().max().item() < 1e-5
    assert gaps[4:].std().item() == pytest.approx(0.1 / 8, rel=0.1)
    assert len(torch.unique(trees.codebook(1).detach(), dim=0)) == 60


def flat(count: int, seed: int) -> Tensor:
    """``(N, L, d_c)`` whose residuals take up half of the directions."""
    h = torch.randn(count, LEVELS, WIDTH, generator=torch.Generator().manual_seed(seed))
    h[..., WIDTH // 2 :] = 0
    return h


def test_spare_directions_of_the_bases_do_not_show_in_the_codes() -> None:
    trees = make()
    trees.initialise(flat(300, 0), seed=0)
    book = trees.book(0)
    assert book.base[:, WIDTH // 2 :].std().item() > 0.01
    assert book()[:, WIDTH // 2 :].abs().max().item() < 1e-5


def test_w_alone_moves_codes_freely_where_there_is_a_spare_direction_for_each() -> None:
    """With d_c >= K and spare directions, `settle` reaches any other code vectors, C as it is; without them
    it can only turn and stretch all together."""
    generator = torch.Generator().manual_seed(2)
    start = torch.zeros(6, 1, 12)
    start[..., :2] = torch.randn(6, 1, 2, generator=generator)
    wanted = start.clone()
    wanted[..., :2] += 0.2 * torch.randn(6, 1, 2, generator=generator)  # each its own way
    away = wanted.repeat(20, 1, 1)
    left = {}
    for spare in (True, False):
        trees = TreeCodebooks(1, 6, 6, 12, seed=0)
        trees.initialise(start, seed=0)
        base = trees.book(0).base
        if not spare:
            base.data.copy_(trees.codebook(0).detach())
        before = base.clone()
        trees.settle(away, seed=0, rounds=40)
        assert torch.equal(base, before)
        left[spare] = (trees.restore(trees.encode(away)) - away).square().sum(-1).mean().item()
    assert left[True] < 0.02 * left[False]


def test_start_refuses_what_cannot_work() -> None:
    trees = make()
    with pytest.raises(ValueError, match="at least one vector"):
        trees.initialise(vectors(0), seed=0)
    trees.freeze_bases()
    with pytest.raises(ValueError, match="frozen"):
        trees.initialise(vectors(9), seed=0)


# restart of unused codes


def far_away(trees: TreeCodebooks, level: int, codes: list[int]) -> None:
    """Put codes where no vector chooses them."""
    book = trees.book(level)
    book.move(torch.tensor(codes), torch.full((len(codes), WIDTH), 100.0))


def well_conditioned(trees: TreeCodebooks) -> TreeCodebooks:
    """W is not symmetric but far from singular, so that every code can be reached."""
    for level in range(2):
        projection = trees.book(level).projection
        if projection is not None:
            noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(level)) * 0.2
            projection.data.copy_(torch.eye(WIDTH) + noise)
    return trees


@pytest.mark.parametrize("projected", [True, False])
def test_unused_codes_restart_on_residuals_and_used_ones_stay(projected: bool) -> None:
    trees, h = well_conditioned(make(projected=projected)), vectors(200, scale=1.0)
    far_away(trees, 0, [1, 3])
    far_away(trees, 1, [0, 4, 8])
    used = [trees(h).codes[:, :1].unique(), trees(h).codes[:, 1:].unique()]
    before = [trees.codebook(level).detach().clone() for level in range(2)]
    projections = [p.clone() for name, p in trees.named_parameters() if "projection" in name]
    shares = trees.revive(h, seed=0)
    assert shares.shape == (LEVELS,)
    assert shares[0].item() == pytest.approx(len(used[0]) / ROOT)
    rest = prefix_residual(h)
    for level, pool in ((0, rest[:, 0]), (1, rest[:, 1:].flatten(0, 1))):
        after = trees.codebook(level).detach()
        dead = [code for code in range(trees.sizes[level]) if code not in used[level].tolist()]
        assert set(dead) >= {0: {1, 3}, 1: {0, 4, 8}}[level]
        torch.testing.assert_close(after[used[level]], before[level][used[level]], atol=0, rtol=0)
        gaps = gaps_between(after[dead], pool)
        assert gaps.min(1).values.max().item() < 1e-4
        assert len(gaps.argmin(1).unique()) == len(dead)  # no two on one vector
    now = [p for name, p in trees.named_parameters() if "projection" in name]
    assert all(torch.equal(a, b) for a, b in zip(projections, now, strict=True))
    now_used = trees.revive(h, seed=1)
    assert (now_used[0] > shares[0]).item()
    assert now_used[0].item() == 1  # every restarted code is the nearest of the vector that it sits on


def test_restarts_follow_the_seed_and_leave_nothing_for_full_use() -> None:
    first, second, h = make(), make(), vectors(300)
    first.revive(h, seed=5)
    second.revive(h, seed=5)
    assert torch.equal(first.codebook(1), second.codebook(1))
    first.initialise(h, seed=0)
    before = first.codebook(1).detach().clone()
    first.revive(h, seed=6)
    assert torch.equal(first.codebook(1), before)


def test_a_leaf_code_that_one_level_uses_stays() -> None:
    trees = make(projected=False)
    leaf = trees.codebook(1).detach().clone()
    # level 2 only ever sees code 0, level 3 only ever code 1
    codes = torch.tensor([[0, 0, 1]]).expand(40, LEVELS)
    shares = trees.revive(trees.restore(codes), seed=0)
    assert shares.tolist() == pytest.approx([1 / ROOT, 1 / LEAF, 1 / LEAF])
    assert torch.equal(trees.codebook(1)[:2].detach(), leaf[:2])
    assert (trees.codebook(1)[2:] != leaf[2:]).any(1).all()


def test_residual_quantization_restarts_on_what_the_moved_codes_leave_over() -> None:
    trees, h = make(projected=False, residual="quantized", share_leaf=False), vectors(100)
    far_away(trees, 0, [0, 1, 2, 3])
    far_away(trees, 1, list(range(1, LEAF)))
    old = h[:, 1] - trees.restore(trees.encode(h))[:, 0]
    trees.revive(h, seed=0)
    new = h[:, 1] - trees.restore(trees.encode(h))[:, 0]
    moved = trees.codebook(1)[1:].detach()
    assert gaps_between(moved, new).min(1).values.max().item() == 0
    assert gaps_between(moved, old).min(1).values.max().item() > 0.01


def test_frozen_codes_are_measured_but_stay() -> None:
    trees = make()
    trees.freeze_bases()
    before = {name: value.clone() for name, value in trees.state_dict().items()}
    shares = trees.revive(vectors(3), seed=0)
    assert 0 < shares[0].item() <= 3 / ROOT
    assert all(torch.equal(before[name], value) for name, value in trees.state_dict().items())


def test_a_nearly_singular_w_gets_no_long_base_vectors() -> None:
    trees = make()
    projection = trees.book(0).projection
    assert projection is not None
    projection.data.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-5])))
    trees.book(0).move(torch.tensor([2]), torch.ones(1, WIDTH))
    torch.testing.assert_close(trees.codebook(0)[2].detach(), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert trees.book(0).base[2].norm().item() < 2


# storage


def test_state_survives_saving_and_holds_weights_only() -> None:
    trees, other = make(), make(seed=9)
    assert set(trees.state_dict()) == {
        f"books.{n}.{part}" for n in range(2) for part in ("base", "projection")
    }
    other.load_state_dict(trees.state_dict())
    h = vectors(30)
    assert torch.equal(trees.encode(h), other.encode(h))
