"""A small bundle of real products, made in about a second, to test the live catalogue and its service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalex import sample
from catalex.artifacts import read_parquet, write_parquet
from catalex.bundle import Bundle, write_bundle
from catalex.data import columns as c
from catalex.features import ItemContent, TextOptions, item_text, make_encoder
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.tokenizers.conflicts import Method, resolve, space_after
from catalex.tokenizers.identifiers import IdentifierTable, identifier_version
from support.worlds import domain, ring

ITEMS = 120
ENCODER = {"name": "tfidf-svd", "width": 16}


def small_bundle(
    folder: Path,
    *,
    items: int = ITEMS,
    seed: int = 0,
    conflicts: Method = "reassign",
    size: int = 8,
    name: str = "shop",
    scratch: Path | None = None,
) -> Path:
    """Write a bundle of the sample's first products to `folder`: tf-idf, RQ-KMeans of 3 levels, a tiny T5 of
    random weights. `seed` gives another tokenizer and other weights."""
    scratch = scratch or folder.with_name(folder.name + "-parts")
    rows = read_parquet(sample.path() / "year-two" / c.ITEMS_FILE).slice(0, items)
    table = pa.Table.from_pylist(
        [{**row, c.CATEGORIES: ["Shop", _category(row[c.TITLE] or "")]} for row in rows.to_pylist()],
        schema=c.ITEMS_SCHEMA,
    )
    write_parquet(scratch / "prepared" / c.ITEMS_FILE, table)
    options = TextOptions()
    content = [ItemContent(item_text(row, options)) for row in table.to_pylist()]
    encoder = make_encoder(ENCODER, "encoder")
    encoder.fit(content)
    vectors = encoder.encode(content).astype(np.float16).astype(np.float32)
    tokenizer = make_tokenizer({"name": "rqkmeans", "levels": 3, "codebook_size": size})
    world = ring(items=items)
    seen = TokenizerDomain(name, vectors, world.training, world.split_id)
    tokenizer.fit([seen], seed=seed, device="cpu")
    tokenizer.save(scratch / "tokenizer")
    codes = resolve(tokenizer, vectors, tokenizer.encode(vectors), method=conflicts)
    space = space_after(tokenizer.space, conflicts)
    version = identifier_version(scratch / "tokenizer", conflicts)
    recommender = _recommender(space, seed)
    recommender.bind(domain(world, items=items, codes=codes))
    recipe: dict[str, Any] = {
        "name": name,
        "encoder": ENCODER,
        "text": {},
        "tokenize": {"conflicts": conflicts},
        "tokenizer": {"name": "rqkmeans"},
    }
    write_bundle(
        folder,
        domain=name,
        split_id=world.split_id,
        prepared=scratch / "prepared",
        identifiers=IdentifierTable(space).add(name, codes, version),
        tokenizer=scratch / "tokenizer",
        recommender=recommender,
        recipe=recipe,
    )
    return folder


def load(folder: Path) -> Bundle:
    """A bundle opened anew: one object is for one catalogue, since the model is shared otherwise."""
    return Bundle.load(folder)


def _recommender(space: Any, seed: int) -> Generative:
    import torch

    options = {
        "model": {"layers": 1, "hidden": 16, "feed_forward": 32, "heads": 2, "head_width": 8},
        "beam": 20,
        "max_history": 5,
    }
    torch.manual_seed(seed)
    found = Generative(GenerativeOptions.parse(options, "t5"), space)
    found.model.reset()
    return found


def _category(title: str) -> str:
    """A made-up category: the last word of the title."""
    return title.split()[-1].title() if title.split() else "Other"
