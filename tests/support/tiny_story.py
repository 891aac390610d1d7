"""A story that runs in seconds: two domains cut from the packaged sample, and a recipe with a tiny T5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from catalex import sample
from catalex.artifacts import read_parquet, write_parquet
from catalex.data import columns as c

DOMAINS = sample.DOMAINS
ITEMS, USERS, LONGEST, SHORTEST = 60, 70, 8, 4


def cut_sample(folder: Path) -> None:
    """Write, for each year of the sample, its 60 most bought products and 70 users who bought some."""
    for year in DOMAINS:
        events = read_parquet(sample.path() / year / c.INTERACTIONS_FILE)
        items = read_parquet(sample.path() / year / c.ITEMS_FILE)
        users, bought = (events[name].to_numpy() for name in (c.USER_ID, c.ITEM_ID))
        chosen = np.sort(np.argsort(-np.bincount(bought), kind="stable")[:ITEMS])
        number = np.full(items.num_rows, -1)
        number[chosen] = np.arange(ITEMS)
        histories: dict[int, list[int]] = {}
        for user, item in zip(users.tolist(), number[bought].tolist(), strict=True):
            if item >= 0 and len(histories.setdefault(user, [])) < LONGEST:
                histories[user].append(item)
        kept = [history for history in histories.values() if len(history) >= SHORTEST][:USERS]
        lengths = [len(history) for history in kept]
        columns = {
            c.USER_ID: pa.array(np.repeat(np.arange(len(kept)), lengths), pa.int32()),
            c.ITEM_ID: pa.array([item for history in kept for item in history], pa.int32()),
            c.POSITION: pa.array([place for length in lengths for place in range(length)], pa.int32()),
        }
        write_parquet(folder / year / c.INTERACTIONS_FILE, pa.table(columns))
        rows = items.take(pa.array(chosen))
        ids = rows.schema.get_field_index(c.ITEM_ID)
        rows = rows.set_column(ids, rows.schema.field(ids), pa.array(np.arange(ITEMS), pa.int32()))
        write_parquet(folder / year / c.ITEMS_FILE, rows)


def write_story(folder: Path) -> Path:
    """Cut the sample into ``folder/data``, write a recipe with every stage over it, and return its path.

    The recipe's workspace ``run`` and its ``cache`` are relative: they lie where the run is started.
    """
    data = folder / "data"
    cut_sample(data)
    one, two = DOMAINS
    recipe = {
        "name": "tiny",
        "workspace": "run",
        "cache": "cache",
        "device": "cpu",
        "domains": {
            year: {"source": "canonical", "options": {"folder": str(data / year)}} for year in DOMAINS
        },
        "encoder": {"name": "tfidf-svd", "width": 16},
        "tokenizer": {"name": "rqkmeans", "levels": 3, "codebook_size": 8},
        "tokenize": {"domains": [one, two]},
        "recommender": {
            "name": "t5",
            "model": {
                "layers": 1,
                "hidden": 16,
                "feed_forward": 32,
                "heads": 2,
                "head_width": 8,
                "dropout": 0.1,
            },
            "max_history": 5,
            "beam": 10,
            "validation_beam": 10,
            "training": {
                "batch_size": 32,
                "learning_rate": 0.003,
                "warmup_steps": 5,
                "evaluate_every": 1,
                "checkpoint_seconds": 0.05,
            },
        },
        "pretrain": {"domains": [one], "training": {"epochs": 3}},
        "transfer": {"domains": [two], "starts": ["pretrained", "scratch"], "training": {"epochs": 2}},
        "evaluate": {"baselines": ["popularity", "transitions", "sasrec"], "examples": 2},
        "baselines": {"sasrec": {"hidden": 16, "layers": 1, "epochs": 2, "batch_size": 32}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
