# mypy: ignore-errors
"""Choosing the best children of the beams, without sorting them.

A score is at most 0, so the bits of its float32 without the sign are an integer that grows as the score falls
(its *badness*). A limit below which W of a user's candidates are is found by trying: the candidates, which
stay in registers, are compared with a number and counted. Among equal scores the first candidates win: they
are in the order of their nodes, because the beams are. At the last level the smallest items win, found the
same way.
"""

from __future__ import annotations

import triton
import triton.language as tl

DEAD = tl.constexpr(2**31 - 1)


@triton.jit
def badness(score, valid):
    """int32; `DEAD` for what may not be chosen."""
    return tl.where(valid & (score > float("-inf")), score.to(tl.int32, bitcast=True) & 0x7FFFFFFF, DEAD)


@triton.jit
def limit_of(values, count):
    """A number below which `count` of the non-negative int32 `values` are, or the `count`-th smallest.

    `DEAD` where no more than `count` are alive. Two numbers close in on it: fewer values than wanted are
    below `low`, more below `high`. What is tried between them is where a count that grew exponentially would
    be right, as it nearly does in the tail of scores, and every third time the middle, so that no
    distribution takes long. What is found does not depend on the path. Without ties it mostly ends after some
    nine counts, once a number between the `count`-th value and the next is met.
    """
    alive = values != DEAD
    below_high = tl.sum(alive.to(tl.int32))
    few = below_high <= count
    low = tl.min(values)
    high = tl.where(few, low, tl.max(tl.where(alive, values, 0)) + 1)
    below_low = tl.full((), 0, tl.int32)
    wanted = tl.log(count + 0.5)
    turn = tl.full((), 0, tl.int32)
    while high - low > 1:
        under = tl.log(below_low + 0.5)
        part = (wanted - under) / (tl.log(below_high + 0.5) - under)
        turn += 1
        part = tl.where(turn % 3 == 0, 0.5, part)
        step = ((high - low).to(tl.float32) * part).to(tl.int32)
        trial = low + tl.minimum(tl.maximum(step, 1), high - low - 1)
        below = tl.sum((values < trial).to(tl.int32))
        more = below > count
        low = tl.where(more, low, trial)
        below_low = tl.where(more, below_low, below)
        high = tl.where(more, trial, tl.where(below == count, trial, high))
        below_high = tl.where(more, below, below_high)
    return tl.where(few, DEAD, low)


@triton.jit
def running(flags):
    """``(ROWS, N)`` how many of `flags` are set up to each place, row after row."""
    counts = flags.to(tl.int32)
    each = tl.sum(counts, 1)
    return tl.cumsum(counts, 1) + (tl.cumsum(each, 0) - each)[:, None]


@triton.jit
def write_best(
    bad,  # (ROWS, N) int32 badness
    name,  # (ROWS, N) int32 node or item
    origin,  # (ROWS, N) int32
    name_ptr,
    score_ptr,
    origin_ptr,  # each (WIDTH,)
    width,
    WIDTH: tl.constexpr,
    BY_NAME: tl.constexpr,
):
    """The `width` best candidates, in their order; -1 and -inf behind the last."""
    limit = limit_of(bad, width)
    chosen = bad < limit
    equal = (bad == limit) & (bad != DEAD)
    missing = width - tl.sum(chosen.to(tl.int32))
    if missing > 0:
        if tl.sum(equal.to(tl.int32)) > missing:
            if BY_NAME:
                highest = limit_of(tl.where(equal, name, DEAD), missing)
                enough = tl.sum((equal & (name < highest)).to(tl.int32)) == missing
                equal = equal & (name <= highest - enough.to(tl.int32))
            else:
                equal = equal & (running(equal) <= missing)
        chosen = chosen | equal
    place = running(chosen) - 1
    tl.store(name_ptr + place, name, chosen)
    tl.store(score_ptr + place, -bad.to(tl.float32, bitcast=True), chosen)
    tl.store(origin_ptr + place, origin, chosen)
    slot = tl.arange(0, WIDTH)
    empty = (slot >= tl.sum(chosen.to(tl.int32))) & (slot < width)
    tl.store(name_ptr + slot, tl.full((WIDTH,), -1, tl.int32), empty)
    tl.store(score_ptr + slot, tl.full((WIDTH,), float("-inf"), tl.float32), empty)
    tl.store(origin_ptr + slot, tl.zeros((WIDTH,), tl.int32), empty)


@triton.jit(do_not_specialize=["rows", "beams", "low", "span", "opened_stride", "width"])
def expand(
    name_ptr,  # (B, W) int32 nodes of the beams, -1 where there is none
    score_ptr,  # (B, W) float32
    logits_ptr,  # (B W, span) float32
    log_sums_ptr,  # (LOGS, B W) float32, of each share of the vocabulary
    starts_ptr,
    tokens_ptr,
    items_ptr,
    opened_ptr,  # (M, opened_stride) tokens counted from `low`, -1 at closed nodes
    chosen_ptr,  # (B,) int32
    out_name_ptr,
    out_score_ptr,
    out_origin_ptr,  # each (B, blocks, width)
    rows,
    beams,
    low,
    span,
    opened_stride,
    width,
    WIDTH: tl.constexpr,
    BEAMS: tl.constexpr,
    CHILDREN: tl.constexpr,
    PARTS: tl.constexpr,
    LOGS: tl.constexpr,
    MASKED: tl.constexpr,
    LAST: tl.constexpr,
):
    """The best children of `BEAMS` beams of a user; a beam's children come in `PARTS` x `CHILDREN`."""
    user = tl.program_id(0)
    block = tl.program_id(1)
    beam = (block // PARTS) * BEAMS + tl.arange(0, BEAMS)
    row = user.to(tl.int64) * beams + beam
    node = tl.load(name_ptr + row, beam < beams, -1)
    alive = node >= 0
    first = tl.load(starts_ptr + node, alive, 0)
    end = tl.load(starts_ptr + node + 1, alive, 0)
    base = tl.load(score_ptr + row, alive, 0.0)
    log_sum = tl.load(log_sums_ptr + row, alive, 0.0)
    if LOGS > 1:
        largest = log_sum
        for share in tl.static_range(1, LOGS):
            largest = tl.maximum(largest, tl.load(log_sums_ptr + share * rows + row, alive, 0.0))
        total = tl.exp(log_sum - largest)
        for share in tl.static_range(1, LOGS):
            total += tl.exp(tl.load(log_sums_ptr + share * rows + row, alive, 0.0) - largest)
        log_sum = largest + tl.log(total)
    child = first[:, None] + (block % PARTS) * CHILDREN + tl.arange(0, CHILDREN)[None, :]
    valid = child < end[:, None]
    if MASKED:
        opened_row = tl.load(chosen_ptr + user).to(tl.int64) * opened_stride
        token = tl.load(opened_ptr + opened_row + child, valid, -1).to(tl.int32)
        valid = token >= 0
    else:
        token = tl.load(tokens_ptr + child, valid, 0) - low
    logit = tl.load(logits_ptr + row[:, None] * span + token, valid, float("-inf"))
    score = tl.minimum(base[:, None] + (logit - log_sum[:, None]), 0.0)
    if LAST:
        name = tl.load(items_ptr + child, valid, 0)
    else:
        name = child
    out = (user.to(tl.int64) * tl.num_programs(1) + block) * width
    write_best(
        badness(score, valid),
        name,
        tl.broadcast_to(beam[:, None], (BEAMS, CHILDREN)),
        out_name_ptr + out,
        out_score_ptr + out,
        out_origin_ptr + out,
        width,
        WIDTH,
        LAST,
    )


@triton.jit(do_not_specialize=["candidates", "width"])
def narrow(
    name_ptr,
    score_ptr,
    origin_ptr,  # each (B, candidates)
    out_name_ptr,
    out_score_ptr,
    out_origin_ptr,  # each (B, width)
    candidates,
    width,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
    LAST: tl.constexpr,
):
    """The best of a user's candidates from several blocks."""
    user = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, N)[None, :]
    valid = place < candidates
    name = tl.load(name_ptr + user * candidates + place, valid, -1)
    score = tl.load(score_ptr + user * candidates + place, valid, float("-inf"))
    origin = tl.load(origin_ptr + user * candidates + place, valid, 0)
    out = user * width
    write_best(
        badness(score, name >= 0),
        name,
        origin,
        out_name_ptr + out,
        out_score_ptr + out,
        out_origin_ptr + out,
        width,
        WIDTH,
        LAST,
    )


@triton.jit(do_not_specialize=["rows", "width", "above_rows", "above"])
def advance(
    name_ptr,
    origin_ptr,  # each (B, W)
    tokens_ptr,
    table_ptr,  # (V, H) float32
    ancestors_ptr,  # (., above_rows) int32
    x_ptr,  # (R, H) float32
    followed_ptr,  # (., R) int32
    rows,
    width,
    above_rows,
    above,
    H: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Embeddings of the beams' last tokens, and the rows that the beams descend from."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    name = tl.load(name_ptr + row, inside, -1)
    parent = (row // width) * above + tl.load(origin_ptr + row, inside, 0)
    token = tl.load(tokens_ptr + name, name >= 0, 0)
    column = tl.arange(0, H)
    x = tl.load(table_ptr + token.to(tl.int64)[:, None] * H + column[None, :])
    tl.store(x_ptr + row[:, None] * H + column[None, :], x, inside[:, None])
    for slot in tl.static_range(0, POSITION):
        earlier = tl.load(ancestors_ptr + slot * above_rows + parent, inside, 0)
        tl.store(followed_ptr + slot * rows + row, earlier, inside)
    tl.store(followed_ptr + POSITION * rows + row, parent, inside)


@triton.jit(do_not_specialize=["width", "k"])
def rank(
    name_ptr,
    score_ptr,  # each (B, width)
    doubt_ptr,  # (B,) float32
    items_ptr,
    scores_ptr,  # each (B, k)
    width,
    k,
    N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Items in order: a candidate's place is the number of those before it."""
    user = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, N)
    name = tl.load(name_ptr + user * width + place, place < width, -1)
    score = tl.load(score_ptr + user * width + place, place < width, float("-inf"))
    key = (badness(score, name >= 0).to(tl.int64) << 32) | tl.where(name >= 0, name, place)
    order = tl.zeros((N,), tl.int32)
    for begin in range(0, N, CHUNK):
        other = begin + tl.arange(0, CHUNK)
        name_2 = tl.load(name_ptr + user * width + other, other < width, -1)
        score_2 = tl.load(score_ptr + user * width + other, other < width, float("-inf"))
        key_2 = (badness(score_2, name_2 >= 0).to(tl.int64) << 32) | tl.where(name_2 >= 0, name_2, other)
        order += tl.sum((key_2[None, :] < key[:, None]).to(tl.int32), 1)
    # not a number where the root's log-sum-exp is none: adding 0 times it changes no other score
    score += tl.load(doubt_ptr + user) * 0.0
    tl.store(items_ptr + user * k + order, name, order < k)
    tl.store(scores_ptr + user * k + order, score, order < k)


@triton.jit
def node_of(leaf, above_ptr, above_at_ptr, DEPTH: tl.constexpr, LEVELS: tl.constexpr):
    """The node of level `DEPTH` that each leaf is below; 0 for no leaf."""
    node = tl.maximum(leaf, 0)
    for up in tl.static_range(1, LEVELS - DEPTH):
        node = tl.load(above_ptr + tl.load(above_at_ptr + (LEVELS - up)) + node)
    return node


@triton.jit
def leaf_at(excluded_ptr, leaf_of_ptr, place, entries, known):
    """Leaf of each excluded item; -1 for what is no item."""
    item = tl.load(excluded_ptr + place, place < entries, -1)
    return tl.load(leaf_of_ptr + item, (item >= 0) & (item < known), -1)


@triton.jit(do_not_specialize=["beams", "entries", "known", "low", "span"])
def close(
    name_ptr,  # (B, W) int32
    excluded_ptr,  # (B, E) int64
    leaf_of_ptr,
    above_ptr,
    above_at_ptr,  # see `StaticIndex`
    edges_ptr,
    tokens_ptr,
    logits_ptr,  # (B W, span) float32
    beams,
    entries,
    known,
    low,
    span,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    BEAMS: tl.constexpr,
    DEPTH: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Set to -inf the logits of nodes whose items are all excluded, at those beams that are their parents."""
    user = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, E)
    leaf = leaf_at(excluded_ptr + user * entries, leaf_of_ptr, place, entries, known)
    node = node_of(leaf, above_ptr, above_at_ptr, DEPTH, LEVELS)
    # the same once more, along the other axis
    other = tl.arange(0, E)
    other_leaf = leaf_at(excluded_ptr + user * entries, leaf_of_ptr, other, entries, known)
    other_node = node_of(other_leaf, above_ptr, above_at_ptr, DEPTH, LEVELS)
    again = (leaf[:, None] == other_leaf[None, :]) & (other[None, :] < place[:, None])
    counted = (leaf >= 0) & (tl.sum(again.to(tl.int32), 1) == 0)
    again = (leaf[:, None] == other_leaf[None, :]) & (place[:, None] < other[None, :])
    other_counted = (other_leaf >= 0) & (tl.sum(again.to(tl.int32), 0) == 0)
    together = (node[:, None] == other_node[None, :]) & other_counted[None, :]
    leaves = tl.load(edges_ptr + node + 1) - tl.load(edges_ptr + node)
    shut = counted & (tl.sum(together.to(tl.int32), 1) == leaves)
    parent = tl.zeros_like(node)
    if DEPTH > 0:
        parent = tl.load(above_ptr + tl.load(above_at_ptr + DEPTH) + node)
    token = tl.load(tokens_ptr + node, shut, low) - low
    for begin in range(0, WIDTH, BEAMS):
        beam = begin + tl.arange(0, BEAMS)
        name = tl.load(name_ptr + user * beams + beam, beam < beams, -1)
        met = (parent[:, None] == name[None, :]) & shut[:, None]
        places = (user * beams + beam)[None, :] * span + token[:, None]
        tl.store(logits_ptr + places, tl.full((E, BEAMS), float("-inf"), tl.float32), met)
