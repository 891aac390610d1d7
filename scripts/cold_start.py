"""Measure cold start: items that nobody's training has seen, added live, recommended to those who chose them.

    python scripts/cold_start.py                                   # the packaged sample, recipes/demo.yaml
    python scripts/cold_start.py RECIPE --domain beauty --share 0.1 --seed 0

A share of a domain's items, drawn at random, is held out: their rows leave the catalogue and their
interactions leave the histories of every domain of the recipe (by source id) before anything is trained, the
tokenizer included. The recipe runs to its bundle. Then the held-out items are added to a `LiveCatalogue` by
their content alone, and judged are the test cases of the *whole* domain (histories with held-out items in
them):

- cold users: the target is one of the added items. Against popularity (which has never seen them) and content
  neighbours: the items with the largest cosine to the last item of the history, or to the mean of the latest
  ten, out of the same catalogue, the history left out because an item is always its own neighbour;
  The model alone, and with the places that `serving.newcomers` keeps for them (one in ten);
- the other users: the recall before and after the items were added, and how many of their lists changed.

Prints a table and writes all numbers as JSON beside the workspace. ``--reference BUNDLE`` judges also a
bundle whose training had the items: what cold start costs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalex.artifacts import write_json, write_parquet
from catalex.bundle import Bundle
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.data.histories import Histories, popularity
from catalex.features import ItemContent
from catalex.pipelines.prepare import prepare_stage
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.run import run_recipe
from catalex.pipelines.workspace import workspace
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import NewItem
from catalex.serving.newcomers import Newcomers
from catalex.serving.store import Store
from catalex.types import Bools, Floats, Ints

K = 10
LATEST = 10
"""Items of a history whose mean is a query of the content neighbours."""
ROOT = Path(__file__).resolve().parents[1]


def without(domain: Domain, gone: set[str], folder: Path) -> None:
    """Write a domain without the items of these source ids, and without their interactions."""
    sources = domain.items[c.SOURCE_ID].to_pylist()
    kept = np.array([source not in gone for source in sources])
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    items = domain.items.filter(pa.array(kept))
    place = items.schema.get_field_index(c.ITEM_ID)
    column: Any = pa.array(np.arange(items.num_rows), pa.int32())
    write_parquet(folder / c.ITEMS_FILE, items.set_column(place, items.schema.field(place), column))
    mapped = [number[domain.sequences.all[user]] for user in range(len(domain.sequences.all))]
    flat = [history[history >= 0] for history in mapped if (history >= 0).any()]
    lengths = [len(history) for history in flat]
    columns = {
        c.USER_ID: pa.array(np.repeat(np.arange(len(flat)), lengths), pa.int32()),
        c.ITEM_ID: pa.array(np.concatenate(flat), pa.int32()),
        c.POSITION: pa.array(np.concatenate([np.arange(n) for n in lengths]), pa.int32()),
    }
    write_parquet(folder / c.INTERACTIONS_FILE, pa.table(columns))


def held_out_recipe(path: Path, overrides: Sequence[str], folder: Path, gone: set[str]) -> Recipe:
    """The recipe over domains without the held-out items, prepared from those of the whole one."""
    whole = read_recipe(path, [*overrides, f"workspace={folder / 'whole'}"])
    sets = [f"workspace={folder / 'held-out'}"]
    for name in whole.domains:
        without(workspace(whole).domain(name), gone, folder / "data" / name)
        sets.append(f"domains.{name}={{source: canonical, options: {{folder: '{folder / 'data' / name}'}}}}")
    return read_recipe(path, [*overrides, *sets])


def recall(found: Sequence[Sequence[str]], wanted: Sequence[str]) -> Bools:
    """``(B,)`` whether the wanted key is in each list."""
    return np.array([want in keys for keys, want in zip(found, wanted, strict=True)], bool)


def live_lists(live: LiveCatalogue, histories: Sequence[Sequence[str]]) -> list[list[str]]:
    """The best `K` keys for each history of keys."""
    best = live.engine.search_all([live.history_tokens(history) for history in histories])
    rows = best.items[:, :K].tolist()
    return [[item.key for n in row if (item := live.numbered(n)) is not None] for row in rows]


def with_newcomers(live: LiveCatalogue, histories: Sequence[Sequence[str]]) -> list[list[str]]:
    """The best `K` keys where newcomers have places of their own."""
    newcomers = Newcomers(live)
    best = live.engine.search_all([live.history_tokens(history) for history in histories])
    found = []
    for row, scores, history in zip(best.items.tolist(), best.scores.tolist(), histories, strict=True):
        listed = [(i, s) for n, s in zip(row, scores, strict=True) if (i := live.numbered(n)) is not None]
        found.append([item.key for item, _ in newcomers.mix(listed, history, K)])
    return found


def neighbours(vectors: Floats, histories: Histories, latest: int) -> Ints:
    """``(B, K)`` items nearest to the mean vector of the latest items, those of the history left out."""
    found = np.zeros((len(histories), K), np.int64)
    for row in range(len(histories)):
        history = histories[row]
        scores = vectors @ vectors[history[-latest:]].mean(0)
        scores[history] = -np.inf
        found[row] = np.argsort(-scores, kind="stable")[:K]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold out, train, add, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "demo.yaml")
    parser.add_argument("--domain", help="default: the first that the recipe evaluates")
    parser.add_argument("--share", type=float, default=0.1, help="of the domain's items")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--folder", type=Path, default=Path("runs/cold-start"))
    parser.add_argument("--reference", type=Path, help="a bundle of the same domain, trained with everything")
    given = parser.parse_args(arguments)

    folder = given.folder.resolve()
    whole = read_recipe(given.recipe, [*given.settings, f"workspace={folder / 'whole'}"])
    name = given.domain or whole.evaluate_domains[0]
    prepare_stage(whole)
    domain = workspace(whole).domain(name)
    sources = [str(source) for source in domain.items[c.SOURCE_ID].to_pylist()]
    assert len(set(sources)) == len(sources), "items are told apart by their source ids here"
    draw = np.random.default_rng(given.seed).permutation(len(domain))[: round(given.share * len(domain))]
    cold = np.zeros(len(domain), bool)
    cold[draw] = True
    recipe = held_out_recipe(given.recipe, given.settings, folder, {sources[i] for i in draw})
    run_recipe(recipe)

    store = folder / "store.db"
    for left in (store, folder / "store.db-wal", folder / "store.db-shm"):
        left.unlink(missing_ok=True)
    live = LiveCatalogue.open(
        Bundle.load(recipe.folder / "bundle" / name), Store.open(str(store)), beam=recipe_beam(recipe)
    )
    cases = domain.sequences.test
    keys = [[sources[i] for i in cases.histories[row].tolist()] for row in range(len(cases))]
    wanted = [sources[i] for i in cases.targets.tolist()]
    is_cold: Bools = cold[cases.targets]
    known = [[key for key in row if live.get(key) is not None] for row in keys]
    others = [row for row in np.flatnonzero(~is_cold).tolist() if known[row]]
    before = live_lists(live, [known[row] for row in others])

    rows = domain.items.take(pa.array(np.sort(draw))).to_pylist()
    began = time.monotonic()
    for start in range(0, len(rows), 100):
        live.add([new_item(row) for row in rows[start : start + 100]])
    seconds = time.monotonic() - began

    after = live_lists(live, [known[row] for row in others])
    full = live_lists(live, keys)
    reader = live.reader
    content = [ItemContent(item.text) for key in sources if (item := live.get(key)) is not None]
    vectors = reader.vectors(content)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    trained = workspace(recipe).domain(name)
    counts = dict(
        zip(
            trained.items[c.SOURCE_ID].to_pylist(),
            popularity(trained.sequences.training, len(trained)).tolist(),
            strict=True,
        )
    )
    popular = sorted(sources, key=lambda key: (-counts.get(key, 0), sources.index(key)))[:K]

    systems = {
        "catalex, added live": recall(full, wanted),
        "catalex, one place in ten for newcomers": recall(with_newcomers(live, keys), wanted),
        "popularity": recall([popular] * len(cases), wanted),
    }
    for latest, label in ((1, "last item"), (LATEST, f"latest {LATEST}")):
        near = neighbours(vectors, cases.histories, latest)
        systems[f"content neighbours of the {label}"] = (near == cases.targets[:, None]).any(1)
    if given.reference is not None:
        reference = Bundle.load(given.reference)
        ranking = reference.recommender.recommend(cases.histories, K)
        systems["catalex, trained with them"] = ranking.ranks(cases.targets) > 0
    hit_before = recall(before, [wanted[row] for row in others])
    hit_after = recall(after, [wanted[row] for row in others])
    shown = np.array([cold[[sources.index(k) for k in row]].mean() for row in full])
    result = {
        "recipe": str(given.recipe),
        "domain": name,
        "seed": given.seed,
        "items": len(domain),
        "held_out": len(draw),
        "cold_users": int(is_cold.sum()),
        "other_users": len(others),
        "seconds_to_add": round(seconds, 2),
        "recall@10": {
            system: {
                "cold": round(float(hit[is_cold].mean()), 4),
                "others": round(float(hit[~is_cold].mean()), 4),
            }
            for system, hit in systems.items()
        },
        "others_without_held_out_in_history": {
            "before": round(float(hit_before.mean()), 4),
            "after": round(float(hit_after.mean()), 4),
            "gained": int((hit_after & ~hit_before).sum()),
            "lost": int((hit_before & ~hit_after).sum()),
            "lists_changed": int(sum(a != b for a, b in zip(before, after, strict=True))),
        },
        "share_of_added_items_in_lists": round(float(shown.mean()), 4),
    }
    write_json(folder / f"cold-start-{name}-{given.seed}.json", result)
    print(json.dumps(result, indent=1))
    live.close()


def recipe_beam(recipe: Recipe) -> int:
    """The beam that the recipe evaluates with."""
    return max(int(recipe.recommender.get("beam", 50)), K)


def new_item(row: dict[str, Any]) -> NewItem:
    """A row of ``items.parquet`` as its owner would bring it."""
    return NewItem(
        str(row[c.SOURCE_ID]),
        title=row[c.TITLE],
        brand=row[c.BRAND],
        categories=tuple(row[c.CATEGORIES] or ()),
        description=row[c.DESCRIPTION],
        keywords=row[c.KEYWORDS],
        extra=json.loads(row[c.EXTRA]) if row[c.EXTRA] else {},
    )


if __name__ == "__main__":
    main()
