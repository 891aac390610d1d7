"""Each Triton kernel against its twin in plain torch: on a GPU compiled, elsewhere in Triton's interpreter.

In float32, where both sides add up the same numbers in another order; that bf16 is near is tested on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from catalex.decoding import ABSENT, Trie, beam_search
from catalex.decoding.engine import Engine
from catalex.decoding.engine.index import StaticIndex
from catalex.decoding.engine.masks import open_tokens
from catalex.decoding.engine.plain import DEAD, Plain, encoder_bias, padding_bias
from catalex.decoding.engine.program import Beams
from catalex.decoding.engine.weights import Weights
from catalex.models.t5 import T5, T5Options

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton", reason="the kernels need triton")
tl = pytest.importorskip("triton.language")
limit_of = pytest.importorskip("catalex.decoding.engine.kernels.selection").limit_of

if TYPE_CHECKING:
    from catalex.decoding.engine.fused import Fused

VOCABULARY = 150
USERS, BEAMS, LEVELS = 3, 5, 3


@pytest.fixture(scope="module")
def model() -> T5:
    torch.manual_seed(3)
    options = T5Options(layers=2, hidden=32, feed_forward=64, heads=3, head_width=16)
    return T5(VOCABULARY, options).eval().to(DEVICE)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    generator = np.random.default_rng(5)
    rows = np.unique(generator.integers(0, 12, (300, LEVELS)) + np.array([1, 41, 81]), axis=0)
    return generator.permutation(rows)


@pytest.fixture(scope="module")
def index(rows: np.ndarray) -> StaticIndex:
    return StaticIndex(Trie(rows).to("cpu"), torch.device(DEVICE))


@pytest.fixture(scope="module")
def plain(model: T5) -> Plain:
    return Plain(Weights(model, LEVELS, torch.float32))


@pytest.fixture(scope="module")
def fused(plain: Plain) -> Fused:
    from catalex.decoding.engine.fused import Fused

    return Fused(plain.weights)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def parts(x: torch.Tensor, count: int) -> torch.Tensor:
    """`x` as a sum of parts."""
    others = random(count - 1, *x.shape, seed=9)
    return torch.cat([(x - others.sum(0)).unsqueeze(0), others])


@pytest.fixture(params=[0, 10_000], ids=["whole", "split"])
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for many programs a row's work is split among them; with none it is not."""
    monkeypatch.setattr("catalex.decoding.engine.fused.FULL", request.param)


@pytest.mark.usefixtures("full")
def test_feed_forward(plain: Plain, fused: Fused) -> None:
    x = random(19, 32)  # not a multiple of a tile
    expected = plain.feed_forward(x, plain.weights.decoder, 1)
    near(fused.feed_forward(parts(x, 3), "decoder", 1).sum(0), expected)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("length", [3, 16, 21])
def test_encoder_attention(plain: Plain, fused: Fused, length: int) -> None:
    x = random(USERS, length, 32)
    lengths = torch.tensor([length, 1, max(length - 2, 1)], dtype=torch.int32, device=DEVICE)
    bias = encoder_bias(plain.weights, length) + padding_bias(lengths, length)
    expected = plain.encoder_attention(x, 1, bias)
    found = fused.encoder_attention(parts(x.flatten(0, 1), 2), 1, lengths, length)
    near(found.sum(0).view_as(x), expected)


@pytest.mark.parametrize("length", [7, 150, 300])
def test_the_encoder_at_any_length(plain: Plain, fused: Fused, length: int) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (2, length), generator=generator).to(DEVICE)
    tokens[1, length // 2 :] = 0
    lengths = torch.tensor([length, length // 2], dtype=torch.int32, device=DEVICE)
    rows = random(2 * BEAMS, 32)
    expected = plain.cross(rows, 0, plain.encode(tokens, lengths))
    near(fused.cross(rows.unsqueeze(0), 0, fused.encode(tokens, lengths)).sum(0), expected)


@pytest.mark.usefixtures("full")
def test_self_attention_over_ancestors(model: T5) -> None:
    """Six positions, with the caches of both sides filled by the earlier ones."""
    from catalex.decoding.engine.fused import Fused

    plain = Plain(Weights(model, 6, torch.float32))
    fused = Fused(plain.weights)
    sides = plain.cache(USERS * BEAMS), fused.cache(USERS * BEAMS)
    generator = torch.Generator().manual_seed(2)
    first = torch.arange(USERS * BEAMS) // BEAMS
    parents = first * BEAMS + torch.randint(0, BEAMS, (4, USERS * BEAMS), generator=generator)
    ancestors = torch.cat([first[None], parents]).int().to(DEVICE)
    for position in range(6):
        count = USERS if position == 0 else USERS * BEAMS
        x = random(count, 32, seed=position)
        above = ancestors[:, :count].contiguous()
        expected = plain.self_attention(x, 1, position, above, sides[0])
        near(fused.self_attention(parts(x, 2), 1, position, above, sides[1]).sum(0), expected)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("beams", "together"), [(1, 64), (1, 1), (5, 64), (40, 64)])
def test_cross_attention(
    plain: Plain, fused: Fused, beams: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalex.decoding.engine.fused.TOGETHER", together)
    tokens = torch.randint(1, VOCABULARY, (USERS, 12), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    lengths = torch.tensor([12, 5, 1], dtype=torch.int32, device=DEVICE)
    x = random(USERS * beams, 32)
    expected = plain.cross(x, 1, plain.encode(tokens, lengths))
    near(fused.cross(parts(x, 2), 1, fused.encode(tokens, lengths)).sum(0), expected)


@pytest.mark.usefixtures("full")
def test_head(plain: Plain, fused: Fused, index: StaticIndex) -> None:
    x = random(19, 32)
    for level in index.levels:
        logits, log_sums = fused.head(parts(x, 2), level)
        expected = plain.head(x, level)
        near(logits, expected[0])
        near(log_sums.logsumexp(0), expected[1])


@triton.jit
def limits(values_ptr, counts_ptr, found_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    values = tl.load(values_ptr + row * N + tl.arange(0, N))
    tl.store(found_ptr + row, limit_of(values, tl.load(counts_ptr + row)))


def some_beams(index: StaticIndex, width: int) -> Beams:
    """Nodes of the first level in their order, some missing."""
    names = torch.stack([torch.randperm(12)[:width].sort().values for _ in range(USERS)]).int()
    names[0, -2:] = -1
    names[2] = -1
    scores = -torch.rand(USERS, width).masked_fill(names < 0, torch.inf)
    return Beams(names.to(DEVICE), scores.to(DEVICE), torch.zeros_like(names).to(DEVICE))


@pytest.mark.parametrize("room", [8192, 32, 8])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_selection(
    plain: Plain, fused: Fused, index: StaticIndex, monkeypatch: pytest.MonkeyPatch,
    room: int, last: bool, ties: bool, masked: bool,
) -> None:  # fmt: skip
    """Small rooms split a user's candidates, and even one beam's children, among programs."""
    monkeypatch.setattr("catalex.decoding.engine.fused.CANDIDATES", room)
    torch.manual_seed(7)
    level = index.levels[1]
    beams = some_beams(index, BEAMS)
    logits = random(USERS * BEAMS, level.span)
    shares = random(3, USERS * BEAMS, seed=4) + 8  # of the vocabulary
    log_sums = shares.logsumexp(0)
    if ties:
        logits.zero_()
        log_sums.fill_(10.0)
        beams.score[beams.name >= 0] = -1.0
    mask = None
    if masked:
        allowed = torch.rand(2, index.size) < 0.4
        mask = (
            open_tokens(index, allowed.to(DEVICE))[1],
            torch.tensor([1, 0, 1], dtype=torch.int32, device=DEVICE),
        )
    # any injective numbers will do as items of this level
    items = torch.randperm(len(level.tokens)).int().to(DEVICE) if last else None
    inputs = ((plain, log_sums), (fused, log_sums if ties else shares))
    sides = [run.expand(level, beams, logits, sums, mask, 11, items) for run, sums in inputs]
    if last:
        doubt = torch.zeros(USERS, device=DEVICE)
        ranked = [run.rank(side, 9, doubt) for run, side in zip((plain, fused), sides, strict=True)]
        assert torch.equal(ranked[0][0], ranked[1][0])
        near(ranked[1][1].view(torch.float32), ranked[0][1].view(torch.float32))
        return
    assert torch.equal(sides[0].name, sides[1].name)
    assert torch.equal(sides[0].origin, sides[1].origin)
    near(sides[1].score, sides[0].score)
    ancestors = torch.arange(2 * USERS * BEAMS, device=DEVICE, dtype=torch.int32).view(2, -1)
    steps = [
        run.advance(level, side, BEAMS, ancestors, 1) for run, side in zip((plain, fused), sides, strict=True)
    ]
    assert torch.equal(steps[1][0][0], steps[0][0])
    assert torch.equal(steps[1][1], steps[0][1])


@pytest.mark.parametrize("kinds", [3, 40, 2**30])
def test_the_limit_parts_the_smallest_from_the_rest(kinds: int) -> None:
    """Against sorting, with few and with many kinds of values, of which some are dead."""
    generator = np.random.default_rng(kinds)
    for size in (16, 256):
        for scale in (1, 1000):
            values = (generator.exponential(0.2, (20, size)) * kinds * scale % 2**31).astype(np.int32)
            values = np.where(generator.random((20, size)) < 0.3, DEAD, values)
            counts = generator.integers(1, size, 20).astype(np.int32)
            found = torch.zeros(20, dtype=torch.int32, device=DEVICE)
            given = (torch.from_numpy(array).to(DEVICE) for array in (values, counts))
            limits[(20,)](*given, found, N=size)
            for row, count, limit in zip(values, counts, found.tolist(), strict=True):
                below = int((row < limit).sum())
                assert below == count or limit == np.sort(row)[count]


@pytest.mark.parametrize("entries", [16, 128, 256])
@pytest.mark.parametrize("depth", range(LEVELS))
def test_closed_children_lose_their_logits(
    plain: Plain, fused: Fused, index: StaticIndex, depth: int, entries: int
) -> None:
    """Items below the first nodes of each level, many of them twice, and numbers that are no item's."""
    generator = torch.Generator().manual_seed(3)
    level = index.levels[depth]
    leaves = torch.randint(-1, 24, (USERS, entries), generator=generator)
    excluded = index.items.cpu()[leaves.clamp(min=0)].long().where(leaves >= 0, ABSENT).to(DEVICE)
    excluded[0, 0] = len(index.leaf_of) + 3
    above = 1 if depth == 0 else BEAMS
    names = torch.arange(above, dtype=torch.int32).repeat(USERS, 1).to(DEVICE)
    names[1, 0] = -1
    beams = Beams(names, names.float(), names)
    both = [random(USERS * above, level.span) for _ in range(2)]
    for run, logits in zip((plain, fused), both, strict=True):
        run.close(logits, beams, index, depth, run.closed(index, excluded))
    assert both[0].isinf().any() or depth == 0
    assert torch.equal(*both)


@pytest.mark.parametrize("depth", range(LEVELS))
def test_nodes_are_closed_after_items_went(plain: Plain, fused: Fused, rows: np.ndarray, depth: int) -> None:
    index = StaticIndex(Trie(rows).to("cpu"), torch.device(DEVICE))
    fewer = Trie(rows)
    fewer.remove(np.random.default_rng(1).permutation(len(rows))[: len(rows) // 2])
    index.load(fewer.to("cpu"))
    excluded = torch.from_numpy(fewer.rows()[1][:24].reshape(USERS, 8)).to(DEVICE)
    width = 1 if depth == 0 else len(fewer.to("cpu").levels[depth - 1].tokens)
    names = torch.arange(width, dtype=torch.int32).repeat(USERS, 1).to(DEVICE)
    beams = Beams(names, names.float(), names)
    both = [torch.zeros(USERS * width, index.levels[depth].span, device=DEVICE) for _ in range(2)]
    for run, logits in zip((plain, fused), both, strict=True):
        run.close(logits, beams, index, depth, run.closed(index, excluded))
    assert both[0].isinf().any() or depth == 0
    assert torch.equal(*both)


def test_ranks_fewer_items_than_wanted_and_doubts(plain: Plain, fused: Fused) -> None:
    names = torch.tensor([[4, 2, -1], [7, 3, 5]], dtype=torch.int32, device=DEVICE)
    scores = torch.tensor([[-1.0, -1.0, -torch.inf], [-3.0, -1.0, -2.0]], device=DEVICE)
    beams = Beams(names, scores, names)
    doubt = torch.tensor([1.0, torch.nan], device=DEVICE)
    found, expected = (run.rank(beams, 3, doubt) for run in (fused, plain))
    assert found[0].tolist() == [[2, 4, ABSENT], [3, 5, 7]]
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1].view(torch.float32), expected[1].view(torch.float32), equal_nan=True)


def test_the_whole_search(model: T5, rows: np.ndarray) -> None:
    trie = Trie(rows)
    tokens = torch.randint(1, VOCABULARY, (USERS, 9), generator=torch.Generator().manual_seed(8))
    tokens[1, 4:] = 0
    mask = torch.rand(USERS, len(rows), generator=torch.Generator().manual_seed(9)) < 0.3
    engine = Engine(model, trie, beam=8, k=5, kind="fused")
    for allowed in (None, mask):
        expected = beam_search(
            model,
            tokens.to(DEVICE),
            trie,
            beam=8,
            k=5,
            allowed=None if allowed is None else allowed.to(DEVICE),
        )
        found = engine.search(tokens, allowed=allowed)
        assert torch.equal(found.items, expected.items.cpu())
        torch.testing.assert_close(found.scores, expected.scores.cpu(), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_bf16_finds_nearly_the_same(rows: np.ndarray) -> None:
    torch.manual_seed(0)
    model = T5(VOCABULARY, T5Options(preset="tiger")).eval().to("cuda")
    tokens = torch.randint(1, VOCABULARY, (64, 40))
    expected = beam_search(model, tokens.cuda(), Trie(rows), beam=50, k=10).items.tolist()
    for kind in ("plain", "fused"):
        found = Engine(model, Trie(rows), precision="bf16", kind=kind).search(tokens).items.tolist()
        common = [len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)]
        assert np.mean(common) >= 0.97
