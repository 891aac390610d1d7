"""Bad input through the command line: one clear sentence, exit code 2, nothing half-written.

Every row of a table says which verb runs, how its input is spoiled, and which words the sentence must hold:
the place, the value, the remedy. Whatever was good on disk before must be there afterwards, byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from catalex import cli
from catalex.artifacts import STAGE_FILE, hash_file, read_arrays, write_arrays, write_json
from catalex.features.tfidf_svd import TfidfSvd
from support.raw_files import cells, write

pytest.importorskip("sklearn", reason="the tiny domains are embedded by tfidf-svd")

COLOURS, THINGS = ("red", "blue", "green", "white"), ("jar", "lamp", "chair", "ribbon")
ITEMS = [f"B{row:02d}" for row in range(16)]
STORY = ("prepare", "embed", "tokenize", "pretrain", "transfer", "evaluate", "bundle", "report")


# --- a tiny shop -------------------------------------------------------------------------------------------


def event_rows(users: int = 24, each: int = 6) -> list[list[Any]]:
    """User, item, seconds: every user has `each` events."""
    return [
        [
            f"u{user:02d}",
            ITEMS[(3 * user + 5 * place + place * place) % 16],
            1_600_000_000 + 100 * user + place,
        ]
        for user in range(users)
        for place in range(each)
    ]


def item_rows() -> list[list[str]]:
    """Id and title."""
    return [[name, f"{COLOURS[row // 4]} {THINGS[row % 4]}"] for row, name in enumerate(ITEMS)]


@dataclass
class Shop:
    """Raw files, a recipe and a workspace in one temporary folder; a row spoils it before a verb runs."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    text: str | bytes | None = None
    """Content of the recipe file when it is not `recipe` as YAML."""

    @classmethod
    def make(cls, folder: Path) -> Shop:
        """Good input."""
        shop = cls(folder)
        shop.write_events(event_rows())
        shop.write_items(item_rows())
        shop.recipe = {
            "name": "tiny",
            "workspace": str(folder / "work"),
            "cache": str(folder / "cache"),
            "device": "cpu",
            "domains": {
                "shop": {
                    "source": "tables",
                    "options": {"interactions": str(shop.events), "items": str(shop.items)},
                    "min_interactions": 2,
                }
            },
            "encoder": {"name": "tfidf-svd", "width": 8},
            "tokenizer": {"name": "rqkmeans", "levels": 3, "codebook_size": 4},
            "recommender": {
                "name": "t5",
                "model": {
                    "layers": 1,
                    "hidden": 16,
                    "feed_forward": 16,
                    "heads": 1,
                    "head_width": 8,
                    "dropout": 0.0,
                },
                "beam": 10,
                "training": {"epochs": 1, "batch_size": 64, "warmup_steps": 1, "evaluate_every": 1},
            },
            "pretrain": {"domains": ["shop"]},
            "transfer": {"domains": ["shop"]},
            "evaluate": {"baselines": ["popularity"], "examples": 1},
        }
        return shop

    @property
    def events(self) -> Path:
        return self.folder / "raw" / "events.csv"

    @property
    def items(self) -> Path:
        return self.folder / "raw" / "items.csv"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def path(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def bundle(self) -> Path:
        return self.work / "bundle" / "shop"

    @property
    def domain(self) -> dict[str, Any]:
        """Block of the domain in the recipe."""
        block: dict[str, Any] = self.recipe["domains"]["shop"]
        return block

    def write_events(
        self, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("user", "item", "timestamp")
    ) -> None:
        write(self.events, cells(header, rows))

    def write_items(self, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("id", "title")) -> None:
        write(self.items, cells(header, rows))

    def use(self, events: Path) -> None:
        """Read the interactions from another file."""
        self.domain["options"]["interactions"] = str(events)

    def save(self) -> None:
        """Write the recipe file, unless a row put something else in its place."""
        if self.text is not None:
            write(self.path, self.text)
        elif not self.path.is_dir():
            self.path.write_text(yaml.safe_dump(self.recipe))

    def run(self, verb: str, *arguments: str) -> Outcome:
        """Run a verb on the recipe."""
        self.save()
        return catalex(verb, str(self.path), *arguments)


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line did."""

    code: int
    out: str
    error: str

    @property
    def sentence(self) -> str:
        """The one line that begins with the program's name; all checks of its form happen here."""
        lines = self.error.splitlines()
        assert "Traceback" not in self.error, self.error
        assert [line for line in lines if line.startswith("catalex: ")] == lines[-1:], self.error
        assert lines[-1].endswith((".", "?")), lines[-1]
        assert len(lines[-1]) < 2000, "a sentence, not a page"
        return lines[-1]


def catalex(*arguments: str) -> Outcome:
    """The command line in this process: exit code, standard output, standard error."""
    out, error = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["catalex", *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), error.getvalue())


def files_below(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary names that nobody should ever see."""
    return [str(p) for p in folder.rglob("*") if p.name.endswith((".tmp", ".new", ".old", ".part"))]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop on which every verb has been run; tests copy it."""
    shop = Shop.make(tmp_path_factory.mktemp("finished"))
    for verb in STORY:
        done = shop.run(verb)
        assert done.code == 0, done.error
    return shop.folder


@pytest.fixture
def shop(finished: Path, tmp_path: Path) -> Shop:
    """A finished shop of one's own: stages know files by content, so a copy is as good as the original."""
    fresh = Shop.make(tmp_path)
    shutil.copytree(finished / "work", fresh.work)
    shutil.copytree(finished / "cache", fresh.folder / "cache")
    # the raw files have other paths here, so 'prepare' runs again; later stages find everything unchanged
    return fresh


def refuse(shop: Shop, words: Sequence[str], *arguments: str) -> str:
    """Run a command that must be refused with these words, and that must change nothing."""
    before = files_below(shop.work)
    outcome = catalex(*arguments)
    assert outcome.code == 2, (outcome.code, outcome.error)
    sentence = outcome.sentence
    for word in words:
        assert word in sentence, f"{word!r} is not in {sentence!r}"
    after = files_below(shop.work)
    assert {name: after.get(name) for name in before} == before, "earlier outputs were touched"
    assert not leftovers(shop.folder)
    return sentence


@dataclass(frozen=True)
class Row:
    """One kind of bad input."""

    name: str
    verb: str
    spoil: Callable[[Shop], object]
    words: tuple[str, ...]
    arguments: tuple[str, ...] = ()


def by_name(rows: Sequence[Row]) -> Any:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


# --- raw tables --------------------------------------------------------------------------------------------


def _cell(row: int, column: int, value: object) -> Callable[[Shop], None]:
    """Replace one cell of the events; `row` counts from 1 without the header, as messages do."""

    def spoil(shop: Shop) -> None:
        rows = event_rows()
        rows[row - 1][column] = value
        shop.write_events(rows)

    return spoil


def _cut(name: str, content: bytes, share: float) -> Callable[[Shop], None]:
    """Interactions from a file that ends too early."""

    def spoil(shop: Shop) -> None:
        path = shop.events.with_name(name)
        path.write_bytes(content[: int(len(content) * share)])
        shop.use(path)

    return spoil


def _packed() -> bytes:
    return gzip.compress(cells(["user", "item", "timestamp"], event_rows()).encode(), mtime=0)


def _parquet() -> bytes:
    sink = io.BytesIO()
    pl.DataFrame(event_rows(), schema=["user", "item", "timestamp"], orient="row").write_parquet(sink)
    return sink.getvalue()


def _damaged_parquet(shop: Shop) -> None:
    """The footer is whole, the pages are not."""
    content = bytearray(_parquet())
    content[8:200] = bytes(192)
    path = shop.events.with_suffix(".parquet")
    path.write_bytes(content)
    shop.use(path)


def _missing(shop: Shop) -> None:
    shop.use(shop.events.with_name("event.csv"))


RAW = [
    Row("file missing", "prepare", _missing, ("event.csv", "does not exist", "id you mean 'events.csv'?")),
    Row("items missing", "prepare", lambda s: s.items.unlink(), ("items.csv", "does not exist")),
    Row("file empty", "prepare", lambda s: s.events.write_bytes(b""), ("events.csv", "is empty", "again")),
    Row("items empty", "prepare", lambda s: s.items.write_bytes(b""), ("items.csv", "is empty", "again")),
    Row("only a header", "prepare", lambda s: s.write_events([]),
        ("events.csv", "no interactions", "heck the file")),
    Row("items only a header", "prepare", lambda s: s.write_items([]),
        ("items.csv", "no rows", "heck the file")),
    Row("a folder", "prepare", lambda s: s.use(s.folder), ("must be a file, not a folder", "ame the file")),
    Row("ending unknown", "prepare", lambda s: s.use(write(s.folder / "events.xlsx", "x")),
        ("events.xlsx", "format", ".parquet", "ename the file")),
    Row("wrong column", "prepare", lambda s: s.write_events(event_rows(), ["user", "item_i", "timestamp"]),
        ("events.csv", "column 'item' is missing", "item_i", "id you mean 'item_i'?")),
    Row("wrong item column", "prepare", lambda s: s.write_items(item_rows(), ["idd", "title"]),
        ("items.csv", "column 'id' is missing", "id you mean 'idd'?")),
    Row("named column missing", "prepare",
        lambda s: s.domain["options"].update(columns={"timestamp": "timestmp"}),
        ("events.csv", "column 'timestmp' is missing", "id you mean 'timestamp'?")),
    Row("timestamp is a word", "prepare", _cell(9, 2, "yesterday"),
        ("events.csv, row 9", "timestamp cannot be read", "yesterday", "time_format")),
    Row("timestamp is huge", "prepare", _cell(9, 2, "1" + "0" * 30),
        ("events.csv, row 9", "timestamp", "1" + "0" * 30, "orrect the row")),
    Row("timestamp in the far future", "prepare", _cell(9, 2, 99_999_999_999_999_999),
        ("events.csv, row 9", "outside the years 1970 to 2100", "99999999999999999", "orrect the row")),
    Row("timestamp negative", "prepare", _cell(9, 2, -5),
        ("events.csv, row 9", "outside the years", "-5", "orrect the row")),
    Row("timestamp in milliseconds", "prepare", _cell(9, 2, 1_600_000_000_000),
        ("row 9", "1600000000000", "time_format: milliseconds")),
    Row("timestamp empty", "prepare", _cell(9, 2, ""), ("events.csv, row 9", "timestamp")),
    Row("user empty", "prepare", _cell(7, 0, ""), ("events.csv, row 7", "user", "missing", "ill it in")),
    Row("item empty", "prepare", _cell(7, 1, ""), ("events.csv, row 7", "item", "missing", "ill it in")),
    Row("unknown item", "prepare", _cell(3, 1, "B99"),
        ("events.csv", "1 of 144 interactions", "'B99'", "unknown_items: drop")),
    Row("duplicate item", "prepare", lambda s: s.write_items([*item_rows(), ["B03", "again"]]),
        ("items.csv, row 17", "appears twice", "'B03'", "duplicate_items: first")),
    Row("item without id", "prepare", lambda s: s.write_items([*item_rows(), ["", "nameless"]]),
        ("items.csv, row 17", "no id", "ill it in")),
    Row("too many cells", "prepare", lambda s: s.write_events([*event_rows(), ["u", "B01", 1, 2, 3]]),
        ("events.csv, row 145", "5 cells", "uote")),
    Row("not UTF-8", "prepare", lambda s: write(s.items, b"id,title\nB00,caf\xe9\n"),
        ("items.csv", "not UTF-8", "encoding: utf8-lossy")),
    Row("binary rubbish", "prepare", lambda s: s.events.write_bytes(bytes(range(256)) * 20), ("events.csv",)),
    Row("truncated gzip", "prepare", _cut("events.csv.gz", _packed(), 0.6),
        ("events.csv.gz", "truncated or damaged", "opy or download it again")),
    Row("not gzip at all", "prepare", _cut("events.csv.gz", b"user,item,timestamp\n", 1),
        ("events.csv.gz", "truncated or damaged", "opy or download it again")),
    Row("truncated Parquet", "prepare", _cut("events.parquet", _parquet(), 0.6),
        ("events.parquet", "truncated or damaged", "opy or download it again")),
    Row("damaged Parquet", "prepare", _damaged_parquet,
        ("events.parquet", "truncated or damaged", "opy or download it again")),
    Row("bad JSON line", "prepare",
        lambda s: s.use(write(s.folder / "e.jsonl", '{"user": "a", "item": "B01", "timestamp": 5}\n{"x":\n')),
        ("e.jsonl, line 2", "not valid JSON", "epair")),
    Row("too small for a split", "prepare",
        lambda s: (s.write_events(event_rows(24, 2)), s.domain.update(min_interactions=0)),
        ("shop", "too small for a leave-one-out split", "bring more data")),
    Row("too small for global time", "prepare",
        lambda s: (
            s.write_events(event_rows(2, 1)), s.domain.update(min_interactions=0, split="global-time")
        ),
        ("shop", "too small for a global-time split", "leave-one-out")),
    Row("global time without times", "prepare",
        lambda s: (
            s.write_events([r[:2] for r in event_rows()], ["user", "item"]),
            s.domain.update(split="global-time"),
        ),
        ("shop", "needs timestamps", "leave-one-out")),
    Row("k-core empty", "prepare", lambda s: s.domain.update(min_interactions=50),
        ("shop", "k-core filter leaves nothing", "24 users", "ower min_interactions")),
    Row("fractions leave nothing", "prepare",
        lambda s: s.domain.update(split="global-time", valid_fraction=0.5, test_fraction=0.5),
        ("shop", "leave nothing to train on", "ower them")),
]  # fmt: skip


@by_name(RAW)
def test_raw_input_is_refused(row: Row, shop: Shop) -> None:
    row.spoil(shop)
    shop.save()
    refuse(shop, row.words, row.verb, str(shop.path), *row.arguments)


# --- recipes -----------------------------------------------------------------------------------------------


def _set(path: str, value: object) -> Callable[[Shop], None]:
    """Set a key of the recipe."""

    def spoil(shop: Shop) -> None:
        *blocks, last = path.split(".")
        block = shop.recipe
        for name in blocks:
            block = block[name]
        block[last] = value

    return spoil


def _text(content: str | bytes) -> Callable[[Shop], None]:
    def spoil(shop: Shop) -> None:
        shop.text = content

    return spoil


def _no_change(shop: Shop) -> None:
    """The arguments are what is wrong."""


RECIPES = [
    Row("empty", "run", _text(""), ("recipe.yaml", "mapping", "recipes/demo.yaml")),
    Row("not YAML", "run", _text("name: [a\ndomains: }"),
        ("recipe.yaml", "not valid YAML", "line 2", "end the line")),
    Row("not text", "run", _text(b"\xff\xfe\x00\x01"), ("recipe.yaml", "not valid YAML")),
    Row("a control character", "run", _text(b"name: a\x00b"), ("recipe.yaml", "not valid YAML")),
    Row("a list", "run", _text("- a\n- b\n"), ("recipe.yaml", "mapping", "['a', 'b']", "recipes/demo.yaml")),
    Row("a number as key", "run", _set("tokenizer", {3: 4}), ("recipe.yaml", "tokenizer")),
    Row("a folder", "run", lambda s: s.path.mkdir(), ("recipe.yaml", "folder", "ame a YAML file")),
    Row("unknown key", "run", _set("tokeniser", {}),
        ("unknown key 'tokeniser'", "allowed", "id you mean 'tokenizer'?")),
    Row("unknown key in a block", "run", _set("transfer.start", ["scratch"]),
        ("transfer", "unknown key 'start'", "id you mean 'starts'?")),
    Row("unknown key in a component", "run", _set("tokenizer.codebooksize", 4),
        ("tokenizer", "unknown key 'codebooksize'", "id you mean 'codebook_size'?")),
    Row("unknown key deep down", "run", _set("recommender.model.layer", 4),
        ("recommender.model", "unknown key 'layer'", "id you mean 'layers'?")),
    Row("unknown key of a domain", "prepare", _set("domains.shop.min_interaction", 4),
        ("domains.shop", "unknown key 'min_interaction'", "id you mean 'min_interactions'?")),
    Row("unknown key of a source", "prepare", _set("domains.shop.options.itemz", "x"),
        ("domains.shop", "unknown key 'itemz'", "id you mean 'items'?")),
    Row("key missing", "run", lambda s: s.recipe.pop("domains"), ("'domains' is missing", "dd 'domains'")),
    Row("source missing", "prepare", lambda s: s.domain.pop("source"),
        ("domains.shop", "'source' is missing")),
    Row("source's file missing", "prepare", lambda s: s.domain["options"].pop("interactions"),
        ("domains.shop", "'interactions' is missing")),
    Row("domain is no block", "run", _set("domains.shop", "tables"), ("domains.shop", "'tables'")),
    Row("no domain", "run", _set("domains", {}), ("domains", "at least one domain")),
    Row("wrong type", "run", _set("tokenizer.levels", "three"), ("tokenizer.levels", "integer", "'three'")),
    Row("out of range", "run", _set("tokenizer.levels", 0),
        ("tokenizer.levels", "greater than or equal to 1", "found 0")),
    Row("no seeds", "run", _set("seeds", []), ("seeds", "at least one", "[]")),
    Row("seed negative", "run", _set("seeds", [-1]), ("seeds", "-1")),
    Row("name with a slash", "run", _set("name", "../a"), ("name", "'../a'")),
    Row("epochs negative", "run", _set("recommender.training.epochs", -1),
        ("recommender.training.epochs", "-1")),
    Row("batch of none", "run", _set("recommender.training.batch_size", 0),
        ("recommender.training.batch_size", "0")),
    Row("no layers", "run", _set("recommender.model.layers", 0), ("recommender.model.layers", "0")),
    Row("no beam", "run", _set("recommender.beam", 0), ("recommender.beam", "0")),
    Row("no history", "run", _set("recommender.max_history", 0), ("recommender.max_history", "0")),
    Row("no list length", "run", _set("evaluate.ks", []), ("evaluate.ks",)),
    Row("list length 0", "run", _set("evaluate.ks", [0]), ("evaluate.ks", "0")),
    Row("unknown source", "prepare", _set("domains.shop.source", "table"),
        ("unknown data source 'table'", "allowed", "id you mean 'tables'?")),
    Row("unknown encoder", "embed", _set("encoder", {"name": "minilmm"}),
        ("unknown encoder 'minilmm'", "allowed", "id you mean 'minilm'?")),
    Row("unknown tokenizer", "tokenize", _set("tokenizer", {"name": "rqkmean"}),
        ("unknown tokenizer 'rqkmean'", "allowed", "id you mean 'rqkmeans'?")),
    Row("tokenizer without name", "tokenize", _set("tokenizer", {"levels": 3}),
        ("tokenizer", "'name' is missing")),
    Row("experts for an unknown domain", "run",
        _set("tokenizer", {"name": "unitok", "experts": {"shopp": 1}}),
        ("tokenizer.experts", "unknown domain 'shopp'", "allowed: shop", "id you mean 'shop'?")),
    Row("more kept experts than there are", "run", _set("tokenizer", {"name": "unitok", "routed": 2}),
        ("tokenizer.routed", "found 2", "allowed: 1 to 1")),
    Row("combination without its shared expert", "run",
        _set("tokenizer", {"name": "unitok", "combination": "residual", "shared": False}),
        ("tokenizer", "'residual'", "needs the shared expert")),
    Row("unknown recommender", "pretrain", _set("recommender", {"name": "t6"}),
        ("unknown recommender 't6'", "allowed", "id you mean 't5'?")),
    Row("unknown baseline", "run", _set("evaluate.baselines", ["popular"]),
        ("unknown recommender 'popular'", "id you mean 'popularity'?")),
    Row("unknown baseline, evaluate", "evaluate", _set("evaluate.baselines", ["popular"]),
        ("unknown recommender 'popular'", "id you mean 'popularity'?")),
    Row("generative baseline", "run", _set("evaluate.baselines", ["t5"]), ("evaluate.baselines", "t5")),
    Row("transfer of a model without identifiers", "run", _set("recommender", {"name": "sasrec"}),
        ("recommender", "sasrec", "t5")),
    Row("transfer of a model without identifiers, alone", "transfer", _set("recommender", {"name": "sasrec"}),
        ("recommender", "sasrec", "t5")),
    Row("unknown domain in pretrain", "pretrain", _set("pretrain.domains", ["shopp"]),
        ("pretrain.domains", "unknown domain 'shopp'", "allowed: shop", "id you mean 'shop'?")),
    Row("unknown domain in transfer", "transfer", _set("transfer.domains", ["shopp"]),
        ("transfer.domains", "unknown domain 'shopp'", "id you mean 'shop'?")),
    Row("unknown domain in evaluate", "evaluate", _set("evaluate.domains", ["zoo"]),
        ("evaluate.domains", "unknown domain 'zoo'", "allowed: shop", "eclare it under 'domains'")),
    Row("unknown domain in tokenize", "tokenize", _set("tokenize", {"domains": ["shopp"]}),
        ("tokenize.domains", "unknown domain 'shopp'", "id you mean 'shop'?")),
    Row("transfer without pretrain", "run", lambda s: s.recipe.pop("pretrain"),
        ("transfer", "no 'pretrain' block", "transfer.starts: [scratch]")),
    Row("variable not set", "run", _set("domains.shop.options.items", "${CATALEX_NOT_SET}/items.csv"),
        ("items", "CATALEX_NOT_SET", "not set", "et it")),
    Row("unknown device", "run", _set("device", "gpu"), ("device", "'gpu'", "auto, cpu, cuda")),
    Row("unknown text field", "run", _set("text", {"columns": ["titel"]}),
        ("text.columns", "titel", "title, brand")),
    Row("override without =", "run", _no_change, ("--set", "key.sub=value", "'a.b'"), ("--set", "a.b")),
    Row("override without key", "run", _no_change, ("--set", "'=3'"), ("--set", "=3")),
    Row("override into a value", "run", _no_change, ("--set", "'name' is not a block"),
        ("--set", "name.x=3")),
    Row("override not YAML", "run", _no_change, ("--set", "not valid YAML", "name=[a"), ("--set", "name=[a")),
    Row("override unknown", "run", _no_change, ("unknown key 'devise'", "id you mean 'device'?"),
        ("--set", "devise=cpu")),
    Row("workspace is a file", "prepare", lambda s: _set("workspace", str(s.items))(s),
        ("items.csv", "folder")),
]  # fmt: skip


@by_name(RECIPES)
def test_recipe_is_refused(row: Row, shop: Shop) -> None:
    row.spoil(shop)
    shop.save()
    refuse(shop, row.words, row.verb, str(shop.path), *row.arguments)


def test_a_recipe_that_does_not_exist_names_the_nearest(shop: Shop) -> None:
    shop.save()
    refuse(
        shop,
        ("recipee.yaml", "does not exist", "id you mean 'recipe.yaml'?"),
        "run",
        str(shop.folder / "recipee.yaml"),
    )
    refuse(
        shop,
        ("nowhere.yaml", "does not exist", "heck the path"),
        "run",
        str(shop.folder / "no" / "nowhere.yaml"),
    )
    refuse(shop, ("x.yaml", "does not exist"), "run", str(shop.path / "x.yaml"))


def test_cuda_is_refused_where_there_is_none(shop: Shop) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    shop.recipe["device"] = "cuda"
    shop.save()
    refuse(shop, ("device", "no CUDA device", "'cuda'", "et device: cpu"), "run", str(shop.path))


# --- the order of the verbs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "needs"),
    [
        ("embed", "prepare"),
        ("tokenize", "embed"),
        ("pretrain", "tokenize"),
        ("transfer", "pretrain"),
        ("evaluate", "transfer"),
        ("bundle", "transfer"),
    ],
)
def test_a_verb_before_its_time_names_the_one_to_run_first(verb: str, needs: str, shop: Shop) -> None:
    for later in STORY[STORY.index(needs) :]:
        shutil.rmtree(shop.work / later, ignore_errors=True)
    shop.save()
    refuse(shop, (f"'{needs}' has not been run", f"un 'catalex {needs}"), verb, str(shop.path))
    assert not list((shop.work / verb).rglob(STAGE_FILE))


def test_a_report_of_nothing_says_so(shop: Shop) -> None:
    shutil.rmtree(shop.work)
    outcome = shop.run("report")
    assert outcome.code in (0, 2)
    assert "Traceback" not in outcome.error


def test_a_domain_too_small_for_the_codebook(shop: Shop) -> None:
    shop.recipe["tokenizer"]["codebook_size"] = 64
    shop.save()
    refuse(
        shop,
        ("shop", "fewer items than codes", "found 16", "at least 64", "codebook_size to at most 16"),
        "tokenize",
        str(shop.path),
    )


def test_more_items_than_identifiers(shop: Shop) -> None:
    shop.recipe["tokenizer"].update(levels=1, codebook_size=8)
    shop.save()
    refuse(
        shop,
        ("more items than identifiers", "found 16", "at most 8", "se more levels"),
        "tokenize",
        str(shop.path),
    )


def test_vectors_with_nan_are_refused_by_embed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    good = TfidfSvd.encode

    def spoiled(self: TfidfSvd, items: Any, advance: Any = None) -> Any:
        vectors = good(self, items, advance)
        vectors[5, 3] = np.nan
        return vectors

    monkeypatch.setattr(TfidfSvd, "encode", spoiled)
    shutil.rmtree(shop.folder / "cache")
    shutil.rmtree(shop.work / "embed")
    shop.save()
    refuse(shop, ("embed shop", "row 5", "NaN"), "embed", str(shop.path))
    monkeypatch.undo()
    assert shop.run("embed").code == 0, "a refused vector must not be remembered by the cache"


def test_vectors_with_nan_are_refused_by_tokenize(shop: Shop) -> None:
    path = shop.work / "embed" / "shop" / "vectors.safetensors"
    vectors = read_arrays(path)["vectors"].copy()
    vectors[5, 3] = np.nan
    write_arrays(path, {"vectors": vectors})
    shop.save()
    refuse(shop, ("vectors.safetensors", "changed", "un 'catalex embed'"), "tokenize", str(shop.path))
    record = json.loads((path.parent / STAGE_FILE).read_text())
    record["outputs"][path.name] = hash_file(path)
    write_json(path.parent / STAGE_FILE, record)
    refuse(shop, ("shop", "row 5", "NaN"), "tokenize", str(shop.path))


def test_a_recommender_of_another_split_is_not_evaluated(shop: Shop) -> None:
    """The test interactions of the new split may be the training interactions of the old one."""
    shop.domain["split"] = "global-time"
    assert shop.run("prepare").code == 0
    words = ("shop", "trained on another split", "allowed", "rain it again")
    assert refuse(shop, words, "evaluate", str(shop.path))


@pytest.mark.parametrize(
    ("verb", "redo"), [("tokenize", "embed"), ("pretrain", "tokenize"), ("bundle", "tokenize")]
)
def test_stages_of_an_earlier_preparation_are_refused(verb: str, redo: str, shop: Shop) -> None:
    shop.write_items([*item_rows()[:-1], ["B15", "another thing"], ["B16", "new"]])
    shop.domain.update(min_item_interactions=0)
    assert shop.run("prepare").code == 0
    refuse(shop, ("shop", "earlier preparation", f"'catalex {redo}'"), verb, str(shop.path))


def test_a_damaged_stage_file(shop: Shop) -> None:
    for content in ('{"verb": "prep', "[]"):
        (shop.work / "tokenize" / STAGE_FILE).write_text(content)
        shop.save()
        refuse(shop, ("tokenize", STAGE_FILE, "un"), "pretrain", str(shop.path))


# --- bundles and recommending ------------------------------------------------------------------------------


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Shop], None]:
    def spoil(shop: Shop) -> None:
        path = shop.bundle / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return spoil


def _one_byte(name: str) -> Callable[[Shop], None]:
    def spoil(shop: Shop) -> None:
        path = shop.bundle / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return spoil


BUNDLES = [
    Row("another format", "", _manifest(lambda m: m.update(format=99)),
        ("manifest.json", "another version", "format 99", "allowed: format 1", "ake it again")),
    Row("no format", "", _manifest(lambda m: m.pop("format")), ("manifest.json", "another version")),
    Row("no list of files", "", _manifest(lambda m: m.pop("files")),
        ("manifest.json", "files", "opy the bundle again")),
    Row("no domain", "", _manifest(lambda m: m.pop("domain")),
        ("manifest.json", "domain", "opy the bundle again")),
    Row("manifest no JSON", "", lambda s: (s.bundle / "manifest.json").write_text("{"),
        ("manifest.json", "not valid JSON")),
    Row("manifest a list", "", lambda s: (s.bundle / "manifest.json").write_text("[]"),
        ("manifest.json", "another version")),
    Row("one byte of the weights", "", _one_byte("recommender/model/model.safetensors"),
        ("recommender/model/model.safetensors", "differs from the bundle's manifest", "opy the bundle")),
    Row("one byte of the items", "", _one_byte("items.parquet"), ("items.parquet", "differs")),
    Row("one byte of the identifiers", "", _one_byte("identifiers.parquet"),
        ("identifiers.parquet", "differs")),
    Row("a file missing", "", lambda s: (s.bundle / "tokenizer" / "config.json").unlink(),
        ("tokenizer/config.json", "missing", "opy the bundle again")),
    Row("no manifest", "", lambda s: (s.bundle / "manifest.json").unlink(),
        ("bundle/shop", "manifest.json", "not a bundle", "catalex bundle RECIPE")),
    Row("no folder", "", lambda s: shutil.rmtree(s.bundle),
        ("bundle/shop", "not a bundle", "catalex bundle RECIPE")),
    Row("a file", "", lambda s: (shutil.rmtree(s.bundle), s.bundle.write_text("x")),
        ("bundle/shop", "not a bundle")),
]  # fmt: skip


@by_name(BUNDLES)
def test_bundle_is_refused(row: Row, shop: Shop) -> None:
    row.spoil(shop)
    refuse(shop, row.words, "recommend", str(shop.bundle), "--history", "B01")


@by_name(BUNDLES)
def test_doctor_finds_what_is_wrong_with_a_bundle(row: Row, shop: Shop) -> None:
    row.spoil(shop)
    outcome = catalex("doctor", str(shop.bundle))
    assert outcome.code == 2
    assert "Traceback" not in outcome.error
    assert [line for line in outcome.out.splitlines() if line.startswith("WRONG")], outcome.out


ASKED = [
    Row("unknown item", "", _no_change, ("bundle/shop", "no item 'B0X'", "id you mean 'B"),
        ("--history", "B01,B0X")),
    Row("item number too large", "", _no_change, ("bundle/shop", "no item '#16'", "#0 to #15"),
        ("--history", "#16")),
    Row("item number not ASCII", "", _no_change, ("bundle/shop", "no item '#²'"), ("--history", "#²")),
    Row("empty history", "", _no_change, ("--history", "empty", "ive at least one item"), ("--history", "")),
    Row("history of commas", "", _no_change, ("--history", "empty", "ive at least one item"),
        ("--history", " , ,")),
    Row("k of 0", "", _no_change, ("-k", "must be positive", "found 0", "at least 1"),
        ("--history", "B01", "-k", "0")),
    Row("k negative", "", _no_change, ("-k", "must be positive", "found -3"),
        ("--history", "B01", "-k", "-3")),
    Row("k not a number", "", _no_change, ("-k", "integer"), ("--history", "B01", "-k", "two")),
]  # fmt: skip


@by_name(ASKED)
def test_recommend_is_refused(row: Row, shop: Shop) -> None:
    refuse(shop, row.words, "recommend", str(shop.bundle), *row.arguments)


def test_recommend_more_than_there_is_gives_all_of_it(shop: Shop) -> None:
    outcome = catalex("recommend", str(shop.bundle), "--history", "B01", "-k", "100000000", "--json")
    assert outcome.code == 0, outcome.error
    assert sorted(row["item_id"] for row in json.loads(outcome.out)) == list(range(16))


def test_a_very_long_history_uses_its_end(shop: Shop) -> None:
    outcome = catalex("recommend", str(shop.bundle), "--history", ",".join(ITEMS * 50), "-k", "3", "--json")
    assert outcome.code == 0, outcome.error
    assert len(json.loads(outcome.out)) == 3


# --- the command line itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn", "x"], ("runn", "id you mean 'run'?")),
        (["run"], ("RECIPE", "issing", "catalex run --help")),
        (["run", "x", "--sett", "a=b"], ("--sett", "--set", "catalex run --help")),
        (["run", "x", "--set"], ("--set", "requires an argument")),
        (["prepare", "x", "y"], ("unexpected", "y")),
        (["recommend", "x"], ("--history", "issing")),
        (["data", "describe", "amazon-beautyy"], ("amazon-beautyy", "id you mean")),
        (["data", "download", "amazon-beautyy"], ("amazon-beautyy", "id you mean")),
        (["data", "listt"], ("listt", "id you mean 'list'?")),
        (["ledger", "merge", "/nowhere/results.jsonl", "/nowhere/other.jsonl"], ("/nowhere/results.jsonl",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_is_explained_in_one_sentence(arguments: list[str], words: tuple[str, ...], shop: Shop) -> None:
    refuse(shop, words, *arguments)


def test_no_arguments_show_the_help() -> None:
    outcome = catalex()
    assert "Traceback" not in outcome.error
    assert "recommend" in outcome.out + outcome.error


def test_ctrl_c_exits_130_with_a_hint(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalex.pipelines.embed.embed", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    shutil.rmtree(shop.work / "embed")
    outcome = shop.run("embed")
    assert outcome.code == 130
    assert outcome.sentence == "catalex: interrupted; run the same command again to continue."
    assert not (shop.work / "embed" / "shop" / STAGE_FILE).exists()
    monkeypatch.undo()
    assert shop.run("embed").code == 0


@pytest.mark.slow
def test_ctrl_c_from_a_terminal(shop: Shop) -> None:
    shop.recipe["recommender"]["training"].update(epochs=100_000, patience=100_000)
    shop.save()
    command = [sys.executable, "-m", "catalex", "pretrain", str(shop.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "pretrain" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    # Python may end itself by the signal when it came during an import; a shell shows both as 130
    assert process.returncode in (130, -signal.SIGINT), error
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "catalex: interrupted; run the same command again to continue."


def test_an_interrupt_that_a_library_swallows_ends_the_program_all_the_same() -> None:
    program = """
import signal, sys, time
from catalex import cli
cli.GRACE = 0.1
@cli.app.command()
def swallow() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        time.sleep(60)
sys.argv = ["catalex", "swallow"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "catalex: interrupted; run the same command again to continue.\n"


# --- disks -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `limit` bytes: writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("verb", "limit"),
    [(verb, limit) for verb in STORY for limit in (0, 400)]
    + [(verb, 1500) for verb in ("tokenize", "pretrain", "transfer", "evaluate", "bundle", "report")],
)
def test_a_file_that_cannot_be_written(verb: str, limit: int, shop: Shop) -> None:
    """The stage is not done, nothing is half-written, and the same command succeeds when there is room."""
    shutil.rmtree(shop.work / verb)
    shutil.rmtree(shop.folder / "cache")
    shop.save()
    before = files_below(shop.work)
    with small_files(limit):
        outcome = catalex(verb, str(shop.path))
    assert outcome.code == 2, (outcome.code, outcome.error)
    assert "allowed size" in outcome.sentence
    assert "aise the limit" in outcome.sentence
    assert not leftovers(shop.folder)
    after = files_below(shop.work)
    assert {name: after.get(name) for name in before} == before
    again = shop.run(verb)
    assert again.code == 0, again.error


@pytest.mark.parametrize("verb", STORY)
def test_a_full_disk(verb: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the error of a full disk, which may come as late as the flush."""
    shutil.rmtree(shop.work / verb)
    shutil.rmtree(shop.folder / "cache")
    shop.save()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("catalex.artifacts.os.fsync", full)
    refuse(shop, ("disk is full", "ree some space"), verb, str(shop.path))
    monkeypatch.undo()
    assert shop.run(verb).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prepare", "embed", "tokenize", "pretrain", "bundle"])
def test_a_really_full_disk(verb: str, shop: Shop) -> None:
    """On a file system of its own with a few free bytes."""
    work, kept = shop.work, shop.folder / "kept"
    shutil.rmtree(work / verb)
    work.rename(kept)
    work.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(work)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        shutil.copytree(kept, work, dirs_exist_ok=True)
        filler = work / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        shop.save()
        refuse(shop, ("disk is full", "ree some space"), verb, str(shop.path))
        filler.unlink()
        assert shop.run(verb).code == 0
    finally:
        subprocess.run(["umount", str(work)], check=True)


# --- odd, but good -----------------------------------------------------------------------------------------


def test_unicode_and_endless_titles_work(shop: Shop) -> None:
    rows = item_rows()
    rows[0][1] = "Äpfel und Öl 🍎 \u200f\u202e שלום"
    rows[1][1] = "word " * 210_000  # 1 MB
    rows[2][1] = "x" * 1_100_000
    rows[3][1] = 'quote " and\nnewline \x00\x07 \\'
    shop.write_items(rows)
    for verb in ("prepare", "embed", "tokenize", "pretrain", "transfer", "bundle"):
        outcome = shop.run(verb)
        assert outcome.code == 0, outcome.error[-2000:]
    health = json.loads((shop.work / "tokenize" / "health.json").read_text())
    assert health["domains"]["shop"]["items"] == 16
    outcome = catalex("recommend", str(shop.bundle), "--history", "B01,B02", "-k", "16")
    assert outcome.code == 0, outcome.error
    assert "Äpfel und Öl 🍎" in outcome.out
    assert max(map(len, outcome.out.splitlines())) < 400, "titles are shortened for the eye"


def test_items_without_text_work_and_are_counted(shop: Shop) -> None:
    rows = item_rows()
    for row in (2, 5, 7):
        rows[row][1] = ""
    shop.write_items(rows)
    assert shop.run("prepare").code == 0
    outcome = shop.run("embed")
    assert outcome.code == 0, outcome.error
    assert "3 of 16 items have no text" in outcome.error
    vectors = read_arrays(shop.work / "embed" / "shop" / "vectors.safetensors")["vectors"]
    assert np.flatnonzero(~vectors.any(axis=1)).tolist() == [2, 5, 7]
    assert shop.run("tokenize").code == 0
    table = pl.read_parquet(shop.work / "tokenize" / "identifiers.parquet")
    assert table["codes"].n_unique() == 16, "items without text have identifiers of their own too"


def test_a_catalogue_without_any_text_works(shop: Shop) -> None:
    shop.write_items([[name, ""] for name in ITEMS])
    for verb in ("prepare", "embed", "tokenize"):
        outcome = shop.run(verb)
        assert outcome.code == 0, outcome.error


def _jpeg(side: int) -> bytes:
    import PIL.Image

    sink = io.BytesIO()
    PIL.Image.new("RGB", (side, side), (200, 30, 30)).save(sink, "JPEG")
    return sink.getvalue()


def _bomb() -> bytes:
    """A PNG of a few kB that claims 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_corrupt_images_and_bombs_are_counted_and_never_fatal(shop: Shop) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("efficientnet_lite_pytorch", reason="the image encoder is an extra")
    good = _jpeg(32)
    pictures = [good, good[: len(good) // 2], b"not an image", b"", _bomb()]
    raw = shop.folder / "raw" / "canonical"
    raw.mkdir()
    rows = [{"item_id": i, "source_id": name, "title": title} for i, (name, title) in enumerate(item_rows())]
    pl.DataFrame(rows, schema_overrides={"item_id": pl.Int32}).write_parquet(raw / "items.parquet")
    events = [
        {"user_id": int(user[1:]), "item_id": ITEMS.index(item), "timestamp": when}
        for user, item, when in event_rows()
    ]
    pl.DataFrame(events).write_parquet(raw / "interactions.parquet")
    images = {"item_id": range(len(pictures)), "jpeg": pictures}
    pl.DataFrame(images, schema={"item_id": pl.Int32, "jpeg": pl.Binary}).write_parquet(
        raw / "images.parquet"
    )
    shop.recipe["domains"]["shop"] = {"source": "canonical", "options": {"folder": str(raw)}}
    shop.recipe["encoder"] = {"name": "efficientnet-lite0"}
    for verb in ("prepare", "embed"):
        outcome = shop.run(verb)
        assert outcome.code == 0, outcome.error
    assert "images could not be read" in outcome.error
    vectors = read_arrays(shop.work / "embed" / "shop" / "vectors.safetensors")["vectors"]
    assert np.isfinite(vectors).all()
    assert vectors[0].any()
    assert not vectors[2:].any()
    assert shop.run("tokenize").code == 0


def test_an_image_encoder_without_images_is_refused(shop: Shop) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the image encoder is an extra")
    shop.recipe["encoder"] = {"name": "efficientnet-lite0"}
    shop.save()
    refuse(shop, ("shop", "needs images", "hoose a text encoder"), "embed", str(shop.path))
