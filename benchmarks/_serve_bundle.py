"""A bundle of many made-up items with random identifiers: for measuring a service, not recommendations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from catalex.artifacts import hash_json, write_parquet
from catalex.bundle import write_bundle
from catalex.data import columns as c
from catalex.data.histories import Cases, Histories
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.tokenizers.identifiers import IdentifierTable, identifier_version

LEVELS, SIZE = 4, 256
WIDTH = 384
"""Of MiniLM's vectors, the default encoder."""
SAMPLE = 8192
"""Random vectors that the codebooks are made of."""
KINDS = 300
"""Categories."""
MODEL = {"layers": 2, "hidden": 64, "feed_forward": 128, "heads": 2, "head_width": 32}
SYLLABLES = ("ba", "ko", "ri", "tu", "mel", "san", "der", "vo", "li", "qua", "zen", "fo", "pra", "nim", "xo")


def words(count: int, random: np.random.Generator) -> list[str]:
    """Made-up words of two to four syllables, distinct."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(random.choice(SYLLABLES, random.integers(2, 5)))] = None
    return list(found)


def make_bundle(folder: Path, items: int, seed: int = 0) -> list[str]:
    """Write the bundle; the words of its titles, the most frequent first."""
    random = np.random.default_rng(seed)
    vocabulary = words(5000, random)
    # as in real titles: a few words are everywhere, most are rare
    chosen = (len(vocabulary) * random.random((items, 6)) ** 3).astype(np.int64)
    table = pa.table(
        {
            c.ITEM_ID: pa.array(np.arange(items), pa.int32()),
            c.SOURCE_ID: [f"P{number:08d}" for number in range(items)],
            c.TITLE: [" ".join(vocabulary[word] for word in row).title() for row in chosen.tolist()],
            c.BRAND: pa.nulls(items, pa.string()),
            c.CATEGORIES: [[f"Kind {kind}"] for kind in random.integers(0, KINDS, items).tolist()],
            **{name: pa.nulls(items, pa.string()) for name in (c.DESCRIPTION, c.KEYWORDS, c.EXTRA, c.IMAGE)},
        },
        schema=c.ITEMS_SCHEMA,
    )
    parts = folder.with_name(folder.name + "-parts")
    write_parquet(parts / c.ITEMS_FILE, table)
    vectors = random.standard_normal((SAMPLE, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    options = {"name": "rqkmeans", "levels": LEVELS, "codebook_size": SIZE, "iterations": 3}
    tokenizer = make_tokenizer(options)
    histories, split = Histories.from_lists([[0, 1, 2]]), hash_json([items, seed])
    tokenizer.fit([TokenizerDomain("made-up", vectors, histories, split)], seed=seed, device="cpu")
    tokenizer.save(parts / "tokenizer")
    drawn = np.unique(random.integers(0, SIZE**LEVELS, int(1.01 * items) + 100))
    numbers = random.permutation(drawn)[:items]
    codes = np.stack([numbers // SIZE**level % SIZE for level in range(LEVELS)], 1).astype(np.int32)
    torch.manual_seed(seed)
    settings = {"model": MODEL, "beam": 50, "max_history": 10}
    recommender = Generative(GenerativeOptions.parse(settings, "t5"), tokenizer.space)
    recommender.model.reset()
    none = Cases(np.zeros(0, np.int64), Histories.from_lists([]), np.zeros(0, np.int64))
    recommender.bind(RecommenderDomain("made-up", items, histories, none, split, identifiers=codes))
    version = identifier_version(parts / "tokenizer", "reassign")
    write_bundle(
        folder,
        domain="made-up",
        split_id=split,
        prepared=parts,
        identifiers=IdentifierTable(tokenizer.space).add("made-up", codes, version),
        tokenizer=parts / "tokenizer",
        recommender=recommender,
        recipe={
            "name": "made-up",
            "encoder": {"name": "minilm"},
            "text": {},
            "tokenize": {"conflicts": "reassign"},
            "tokenizer": options,
        },
    )
    return vocabulary
