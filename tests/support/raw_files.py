"""One tiny domain, written in every raw format that catalex reads.

Six users and five items; user `u5` and item `e` are too rare for a 2-core. The file order is not the time
order, and two events of `u0` share one second, so that sorting and its tie rule show.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

Event = tuple[str, str, int, float]

EVENTS: list[Event] = [
    ("u0", "c", 1_300_000_300, 4.0),
    ("u0", "a", 1_300_000_100, 5.0),
    ("u0", "b", 1_300_000_200, 3.0),
    ("u0", "d", 1_300_000_200, 5.0),
    ("u1", "b", 1_300_000_400, 1.0),
    ("u1", "a", 1_300_000_350, 5.0),
    ("u1", "d", 1_300_000_500, 5.0),
    ("u2", "d", 1_300_000_110, 2.0),
    ("u2", "c", 1_300_000_120, 5.0),
    ("u2", "a", 1_300_000_130, 5.0),
    ("u3", "a", 1_300_000_600, 5.0),
    ("u3", "c", 1_300_000_610, 4.0),
    ("u4", "b", 1_300_000_620, 5.0),
    ("u4", "c", 1_300_000_630, 5.0),
    ("u4", "e", 1_300_000_640, 5.0),
    ("u5", "d", 1_300_000_650, 5.0),
]
"""User, item, seconds, rating; in file order."""

ITEMS: list[dict[str, Any]] = [
    {
        "id": "b",
        "title": "Brush & Comb",
        "brand": "Acme",
        "categories": ["Hair", "Tools"],
        "description": "Soft.",
    },
    {"id": "a", "title": "Aftershave Été", "brand": None, "categories": ["Men"], "description": None},
    {"id": "e", "title": "Eyeliner", "brand": "Acme", "categories": [], "description": "Black"},
    {"id": "d", "title": None, "brand": None, "categories": [], "description": None},
    {"id": "c", "title": "Cream", "brand": "Best", "categories": ["Skin"], "description": "Rich cream."},
]
"""The catalogue; its order is neither alphabetical nor that of the events. Item `d` has no text at all."""

KEPT_ITEMS = ["b", "a", "d", "c"]
"""Items of the 2-core, in the order of the items table."""

SEQUENCES = {"u0": "abdc", "u1": "abd", "u2": "dca", "u3": "ac", "u4": "bc"}
"""Histories in the 2-core, in time order; b before d of `u0` because the file says so."""


def write(path: Path, content: str | bytes) -> Path:
    """Write text or bytes, compressed as the ending says."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    elif path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(data)
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return buffer.getvalue()


def lines_of(rows: Sequence[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def cells(header: Sequence[str], rows: Sequence[Sequence[Any]], separator: str = ",") -> str:
    """CSV or TSV text."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def tables(folder: Path, ending: str) -> dict[str, Any]:
    """Source `tables`: any format; returns the source's options."""
    header = ["user", "item", "timestamp", "rating"]
    fields = ["id", "title", "brand", "categories", "description"]
    events, items = folder / f"events{ending}", folder / f"items{ending}"
    if ending == ".parquet":
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(EVENTS, schema=header, orient="row").write_parquet(events)
        pl.DataFrame(ITEMS, schema_overrides={"brand": pl.String, "description": pl.String}).write_parquet(
            items
        )
    elif "jsonl" in ending:
        write(events, lines_of([dict(zip(header, event, strict=True)) for event in EVENTS]))
        write(items, lines_of(ITEMS))
    else:
        separator = "\t" if "tsv" in ending else ","
        joined = [
            [*(item[f] for f in fields[:3]), "|".join(item["categories"]), item["description"]]
            for item in ITEMS
        ]
        write(events, cells(header, EVENTS, separator))
        write(items, cells(fields, joined, separator))
    return {"interactions": str(events), "items": str(items)}


def amazon2023(folder: Path, ending: str) -> dict[str, Any]:
    """Source `amazon2023`: reviews as `.jsonl.gz` or ratings as `.csv`; times in milliseconds."""
    header = ["user_id", "parent_asin", "rating", "timestamp"]
    rows = [(user, item, rating, 1000 * time) for user, item, time, rating in EVENTS]
    if "csv" in ending:
        reviews = write(folder / f"ratings{ending}", cells(header, rows))
    else:
        records = [{**dict(zip(header, row, strict=True)), "asin": row[1], "text": "fine"} for row in rows]
        reviews = write(folder / f"reviews{ending}", lines_of(records))
    images = [{"thumb": "t.jpg", "large": "l.jpg", "variant": "MAIN", "hi_res": None}]
    metadata = [
        {
            "parent_asin": item["id"],
            "title": item["title"],
            "store": item["brand"],
            "categories": item["categories"],
            "description": [item["description"]] if item["description"] else [],
            "features": [],
            "images": images if item["id"] == "a" else [],
            "average_rating": 4.5,
            "main_category": None,
            "price": "None",
            "details": {},
        }
        for item in ITEMS
    ]
    return {"reviews": str(reviews), "metadata": str(write(folder / "meta.jsonl.gz", lines_of(metadata)))}


def amazon2014(folder: Path, ending: str) -> dict[str, Any]:
    """Source `amazon2014`: metadata as Python literals (`.literal`) or JSON as of 2018 (`.json`)."""
    reviews = [{"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": r} for u, i, t, r in EVENTS]
    rows: list[dict[str, Any]] = []
    for item in ITEMS:
        row = {"asin": item["id"], "title": item["title"], "brand": item["brand"]}
        if ending == ".literal":
            row |= {"categories": [item["categories"]], "description": item["description"], "imUrl": "x.jpg"}
        else:
            row |= {
                "category": item["categories"],
                "description": [item["description"] or ""],
                "imageURL": [],
            }
        if row["title"]:
            row["title"] = row["title"].replace("&", "&amp;")
        rows.append({name: value for name, value in row.items() if value is not None})
    text = "".join(f"{row!r}\n" for row in rows) if ending == ".literal" else lines_of(rows)
    return {
        "reviews": str(write(folder / "reviews_5.json.gz", lines_of(reviews))),
        "metadata": str(write(folder / "meta.json.gz", text)),
    }


def movielens(folder: Path, ending: str) -> dict[str, Any]:
    """Source `movielens`: `.dat` in Latin-1 with `::`, or `.csv`. It knows no brands and no descriptions."""
    titles = [
        (item["id"], item["title"] or "", "|".join(item["categories"]) or "(no genres listed)")
        for item in ITEMS
    ]
    ratings = [(user, item, rating, time) for user, item, time, rating in EVENTS]
    if ending == ".dat":
        for name, rows in (("ratings", ratings), ("movies", titles)):
            text = "".join("::".join(map(str, row)) + "\n" for row in rows)
            write(folder / f"{name}.dat", text.encode("latin-1"))
    else:
        write(folder / "ratings.csv", cells(["userId", "movieId", "rating", "timestamp"], ratings))
        write(folder / "movies.csv", cells(["movieId", "title", "genres"], titles))
    return {"folder": str(folder)}


def recbole(folder: Path, ending: str) -> dict[str, Any]:
    """Source `recbole`: atomic files."""
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    events = header + "".join(f"{u}\t{i}\t{float(t)}\t{r}\n" for u, i, t, r in EVENTS)
    items = "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq\n"
    for item in ITEMS:
        row = (item["id"], item["title"], item["brand"], " ".join(item["categories"]), item["description"])
        items += "\t".join(cell or "" for cell in row) + "\n"
    return {
        "interactions": str(write(folder / f"tiny.inter{ending}", events)),
        "items": str(write(folder / f"tiny.item{ending}", items)),
    }


def canonical(folder: Path, ending: str) -> dict[str, Any]:
    """Source `canonical`: dense ids, positions instead of times, and one image."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {item["id"]: row for row, item in enumerate(ITEMS)}
    users = sorted({event[0] for event in EVENTS})
    events = []
    for number, user in enumerate(users):
        own = sorted((event for event in EVENTS if event[0] == user), key=lambda event: event[2])
        events += [(number, rows[event[1]], position) for position, event in enumerate(own)]
    schema = {"user_id": pl.Int32, "item_id": pl.Int32, "position": pl.Int32}
    pl.DataFrame(events, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    items = [
        {"item_id": row, "source_id": item.pop("id"), **item}
        for row, item in enumerate(dict(i) for i in ITEMS)
    ]
    for item in items:
        item["image"] = "images.parquet#4" if item["item_id"] == 4 else None
    overrides = {"item_id": pl.Int32, "brand": pl.String, "description": pl.String, "image": pl.String}
    pl.DataFrame(items, schema_overrides=overrides).write_parquet(folder / "items.parquet")
    images = pl.DataFrame(
        {"item_id": [4], "jpeg": [b"bytes of c"]}, schema={"item_id": pl.Int32, "jpeg": pl.Binary}
    )
    images.write_parquet(folder / "images.parquet")
    return {"folder": str(folder)}


RAW_FORMATS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "tables": tables,
    "amazon2023": amazon2023,
    "amazon2014": amazon2014,
    "movielens": movielens,
    "recbole": recbole,
    "canonical": canonical,
}
"""Writer of each source's files: folder and ending in, options of the source out."""

ENDINGS: dict[str, tuple[str, ...]] = {
    "tables": tuple(
        [".parquet"]
        + [f".{text}{packed}" for text in ("csv", "tsv", "jsonl") for packed in ("", ".gz", ".zst")]
    ),
    "amazon2023": (".jsonl.gz", ".csv", ".csv.gz"),
    "amazon2014": (".literal", ".json"),
    "movielens": (".dat", ".csv"),
    "recbole": ("",),
    "canonical": ("",),
}
"""Formats that each source can be written in."""
