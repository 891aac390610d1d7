"""A bundle: everything that answering requests needs, in one folder with a manifest of hashes and versions.

::

    manifest.json        format, catalex version, domain, split, hash of every other file
    items.parquet        the catalogue, for titles
    identifiers.parquet  who owns which identifier
    tokenizer/           config.json + model.safetensors; absent where the identifiers were published by
                         others, and then no items can be added
    recommender/         config.json, catalogue.safetensors, model/ (loads in transformers)
    recipe.json          how it was made (encoder and text settings included)

A folder that differs from its manifest by one byte, or was written by another format, is refused by name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import catalex
from catalex.artifacts import hash_file, read_json, read_parquet, write_json
from catalex.data import columns as c
from catalex.data.histories import Histories
from catalex.errors import nearest, user_error
from catalex.recommenders import load_recommender
from catalex.recommenders.base import ABSENT, Recommender
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import JSON

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Suggestion:
    """One recommended item."""

    item_id: int
    title: str
    score: float
    identifier: tuple[int, ...]


class Bundle:
    """A checked bundle, ready to recommend."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Open a bundle after checking every file against the manifest.

        Raises:
            CatalexError: When the folder is no bundle, has another format, or a file is missing or changed.
        """
        if not (folder / MANIFEST).is_file():
            raise user_error(
                f"this folder holds no {MANIFEST}, so it is not a bundle",
                place=folder,
                remedy="make one with 'catalex bundle RECIPE'",
            )
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            known = manifest if isinstance(manifest, dict) else {}
            raise user_error(
                "the bundle was written by another version",
                place=folder / MANIFEST,
                value=f"format {known.get('format')}, catalex {known.get('catalex')}",
                allowed=f"format {FORMAT} (catalex {catalex.__version__})",
                remedy="make it again with this version",
            )
        for key, kind in (("files", dict), ("domain", str), ("split_id", str)):
            if not isinstance(manifest.get(key), kind):
                raise user_error(
                    f"key {key!r} is missing or damaged",
                    place=folder / MANIFEST,
                    value=manifest.get(key),
                    remedy="copy the bundle again, or make it anew",
                )
        for name, digest in manifest["files"].items():
            if not (folder / name).is_file():
                raise user_error(
                    "a file of the bundle is missing", place=folder / name, remedy="copy the bundle again"
                )
            if hash_file(folder / name) != digest:
                raise user_error(
                    "the file differs from the bundle's manifest",
                    place=folder / name,
                    remedy="copy the bundle again, or make it anew",
                )
        return cls(folder, manifest)

    @cached_property
    def recommender(self) -> Recommender:
        """The trained recommender, bound to the bundle's catalogue."""
        return load_recommender(self.folder / "recommender")

    @cached_property
    def identifiers(self) -> IdentifierTable:
        """Identifiers of the bundle's domain."""
        return IdentifierTable.load(self.folder / "identifiers.parquet")

    @cached_property
    def titles(self) -> list[str]:
        """A name for each item of the catalogue."""
        table = read_parquet(self.folder / c.ITEMS_FILE, [c.TITLE, c.KEYWORDS, c.SOURCE_ID])
        return [
            r[c.TITLE] or r[c.KEYWORDS] or r[c.SOURCE_ID] or f"item {i}"
            for i, r in enumerate(table.to_pylist())
        ]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        sources = read_parquet(self.folder / c.ITEMS_FILE, [c.SOURCE_ID])[c.SOURCE_ID].to_pylist()
        return {str(source): i for i, source in enumerate(sources) if source is not None}

    def item(self, name: str) -> int:
        """Item id of a source id ("B0007") or of a written item id ("#12").

        Raises:
            CatalexError: When the catalogue has no such item; names the nearest one.
        """
        if name in self._numbers:
            return self._numbers[name]
        if name.startswith("#"):
            if name[1:].isascii() and name[1:].isdigit() and int(name[1:]) < len(self.titles):
                return int(name[1:])
            raise user_error(
                f"the catalogue has no item {name!r}",
                place=self.folder,
                allowed=f"#0 to #{len(self.titles) - 1}",
                remedy="give a number in this range, or a source id",
            )
        close = nearest(name, self._numbers)
        raise user_error(
            f"the catalogue has no item {name!r}",
            place=self.folder,
            remedy=f"did you mean {close!r}? Write '#12' for item number 12"
            if close
            else "give source ids, or '#12' for item number 12",
        )

    def recommend(
        self, history: Sequence[int], k: int = 10, *, exclude_history: bool = False
    ) -> list[Suggestion]:
        """The `k` best next items after `history` (item ids, oldest first).

        Args:
            exclude_history: Recommend only what is not in the history.

        Raises:
            CatalexError: When the history is empty or k is not positive.
        """
        if not history:
            raise user_error("the history is empty", place="--history", remedy="give at least one item")
        if k < 1:
            raise user_error(
                "the number of items must be positive",
                place="-k",
                value=k,
                allowed="at least 1",
                remedy="ask for one item or more",
            )
        k = min(k, len(self.titles))  # a longer list cannot come, and would only cost memory
        own = Histories.from_lists([list(history)])
        ranking = self.recommender.recommend(own, k, own if exclude_history else None)
        codes = self.identifiers.of(self.manifest["domain"])
        return [
            Suggestion(int(item), self.titles[item], float(score), tuple(int(v) for v in codes[item]))
            for item, score in zip(ranking.items[0], ranking.scores[0], strict=True)
            if item != ABSENT and np.isfinite(score)
        ]


def write_bundle(
    folder: Path,
    *,
    domain: str,
    split_id: str,
    prepared: Path,
    identifiers: IdentifierTable,
    tokenizer: Path | None,
    recommender: Recommender,
    recipe: JSON,
) -> None:
    """Write a bundle for one domain. The folder appears whole or not at all.

    Args:
        prepared: The canonical domain folder.
        tokenizer: Folder of the tokenizer that made the domain's identifiers; None where nobody can make
            more of them, which the manifest's ``new_items`` then says.
        recommender: Trained, and bound to the domain's catalogue.
    """
    with _appearing(folder) as fresh:
        shutil.copy(prepared / c.ITEMS_FILE, fresh / c.ITEMS_FILE)
        if tokenizer is not None:
            shutil.copytree(tokenizer, fresh / "tokenizer")
        own = IdentifierTable(identifiers.space, identifiers.unique).add(
            domain, identifiers.of(domain), identifiers.versions[domain][0]
        )
        own.save(fresh / "identifiers.parquet")
        recommender.save(fresh / "recommender")
        write_json(fresh / "recipe.json", recipe)
        files = sorted(p.relative_to(fresh).as_posix() for p in fresh.rglob("*") if p.is_file())
        manifest = {
            "format": FORMAT,
            "catalex": catalex.__version__,
            "domain": domain,
            "split_id": split_id,
            "identifier_version": identifiers.versions[domain][0],
            "new_items": tokenizer is not None,
            "files": {name: hash_file(fresh / name) for name in files},
        }
        write_json(fresh / MANIFEST, manifest)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` on success and disappears on any failure."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
