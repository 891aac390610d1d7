"""Flat word pieces and padded batches, against lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.features import ItemContent
from catalex.features.trainable.text_index import STEP, TextCollector, blocks

START, END, PADDING = 101, 102, 0


class Letters:
    """A tokenizer with one token a letter, called as transformers calls its own."""

    cls_token_id, sep_token_id, pad_token_id = START, END, PADDING

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        self.seen += texts
        return {"input_ids": [[ord(c) - 96 for c in text if c.isalpha()][:max_length] for text in texts]}


words = st.text(alphabet="abc ", max_size=40)


@given(
    texts=st.lists(words, min_size=1, max_size=8),
    longest=st.integers(4, 40),
    cut=st.integers(0, 8),
    data=st.data(),
)
def test_batch_equals_padded_lists(texts: list[str], longest: int, cut: int, data: st.DataObject) -> None:
    collector = TextCollector(Letters(), longest)
    collector.add(texts[:cut])
    collector.add(texts[cut:])
    made = collector.finish()
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
    tokens, real = made.batch(np.array(rows))
    whole = [[START, *[ord(c) - 96 for c in texts[row] if c.isalpha()][: longest - 2], END] for row in rows]
    width = min(-(-max(map(len, whole)) // STEP) * STEP, longest)
    assert tokens.tolist() == [[*one, *[PADDING] * (width - len(one))] for one in whole]
    assert real.tolist() == [[True] * len(one) + [False] * (width - len(one)) for one in whole]
    assert made.lengths.tolist() == [len([c for c in text if c.isalpha()][: longest - 2]) for text in texts]


def test_only_the_head_of_a_long_text_is_tokenized() -> None:
    tokenizer = Letters()
    collector = TextCollector(tokenizer, 10)
    collector.add(["a" * 1_000_000, " " * 400 + "b", " " * 1_000_000 + "c"])
    assert [len(text) for text in tokenizer.seen] == [320, 1, 0]
    assert collector.finish().lengths.tolist() == [8, 1, 0]


def test_no_texts_at_all() -> None:
    collector = TextCollector(Letters(), 10)
    collector.add([])
    made = collector.finish()
    assert made.lengths.shape == (0,)
    assert made.pieces.tokens.dtype == np.int64


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_blocks_cover_all_items_in_order(count: int) -> None:
    items, counts = [ItemContent(str(i)) for i in range(count)], list[int]()
    found = [item for block in blocks(items, counts.append, size=4) for item in block]
    assert found == items
    assert sum(counts) == count
