"""Seconds and peak memory of `prepare` against the usual pandas idiom and plain polars, on the same events.

    python benchmarks/prepare.py --interactions 2000000
    python benchmarks/prepare.py --interactions 20000000 --rounds 3
    python benchmarks/prepare.py --interactions 100000000 --against

Items follow a Zipf law and users differ in activity; ids are strings, as in Amazon's files. Each contender
runs in a process of its own, so that its peak memory is its own, and they take turns. All make the same
thing, a 5-core in time order with a leave-one-out split in Parquet, and their results are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from catalex.reporting.ledger import BenchmarkLine, append

CHUNK = 2_000_000
"""Interactions generated at a time."""

CORE = 5
KEYS = {"seconds": "s", "cpu_seconds": "s", "peak_gib": "GiB"}


def generate(folder: Path, interactions: int, seed: int = 0) -> None:
    """Write `events.parquet` (user, item, timestamp) in random order and `items.parquet` (id, title)."""
    items, users = max(interactions // 100, 50), max(interactions // 10, 20)
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, items + 1) ** 0.9
    cumulated = np.cumsum(weights / weights.sum())
    schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(folder / "events.parquet", schema, compression="zstd") as writer:
        for start in range(0, interactions, CHUNK):
            count = min(CHUNK, interactions - start)
            item = np.minimum(np.searchsorted(cumulated, random.random(count)), items - 1)
            user = np.minimum((users * random.beta(1, 2, count)).astype(np.int64), users - 1)
            stamp = random.integers(1_200_000_000, 1_500_000_000, count)
            frame = pl.DataFrame({"user": user, "item": item, "timestamp": stamp}).select(
                pl.format("USER{}", "user").alias("user"),
                pl.format("ITEM{}", "item").alias("item"),
                "timestamp",
            )
            writer.write_table(frame.to_arrow().cast(schema))
    ids = pl.DataFrame({"n": np.arange(items)}).select(
        pl.format("ITEM{}", "n").alias("id"), pl.format("Item number {}", "n").alias("title")
    )
    ids.write_parquet(folder / "items.parquet")


def with_catalex(folder: Path) -> dict[str, int]:
    """Our `prepare`."""
    from catalex.data.prepare import PrepareOptions, prepare

    files = {"interactions": str(folder / "events.parquet"), "items": str(folder / "items.parquet")}
    options = PrepareOptions(source="tables", options=files, min_interactions=CORE)
    counts: dict[str, int] = prepare("benchmark", options, folder / "catalex")["counts"]
    return counts


def with_pandas(folder: Path) -> dict[str, int]:
    """What notebooks do: filter with groupby until nothing changes, factorize, sort, count, write."""
    import pandas as pd

    events = pd.read_parquet(folder / "events.parquet")
    items = pd.read_parquet(folder / "items.parquet")
    events = events[events["item"].isin(items["id"])]
    while True:
        before = len(events)
        events = events[events.groupby("user")["item"].transform("size") >= CORE]
        events = events[events.groupby("item")["user"].transform("size") >= CORE]
        if len(events) == before:
            break
    events["user_id"] = pd.factorize(events["user"])[0].astype("int32")
    items = items[items["id"].isin(events["item"])].reset_index(drop=True)
    rows = pd.Series(np.arange(len(items), dtype="int32"), index=items["id"])
    events["item_id"] = events["item"].map(rows)
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    groups = events.groupby("user_id")
    events["position"] = groups.cumcount().astype("int32")
    left = groups.cumcount(ascending=False)
    events["split"] = np.select([left == 0, left == 1], [2, 1], 0).astype("int8")
    (folder / "pandas").mkdir(exist_ok=True)
    columns = ["user_id", "item_id", "position", "timestamp", "split"]
    events[columns].to_parquet(folder / "pandas" / "interactions.parquet", index=False, compression="zstd")
    return {"users": int(events["user_id"].max()) + 1, "items": len(items), "interactions": len(events)}


def with_polars(folder: Path) -> dict[str, int]:
    """What someone writes who knows polars: ids as categories, counts over windows, one sort, one pass."""
    items = pl.read_parquet(folder / "items.parquet")
    user, item = pl.col("user").cast(pl.Categorical), pl.col("item").cast(pl.Enum(items["id"]), strict=False)
    found = pl.scan_parquet(folder / "events.parquet").select(user, item, "timestamp")
    events = found.filter(pl.col("item").is_not_null()).collect(engine="streaming")
    while True:
        before = events.height
        events = events.filter(pl.len().over("user") >= CORE)
        events = events.filter(pl.len().over("item") >= CORE)
        if events.height == before:
            break
    users = events.select(pl.col("user").unique(maintain_order=True)).with_row_index("user_id")
    kept = events.select(pl.col("item").unique()).sort(pl.col("item").to_physical()).with_row_index("item_id")
    events = events.join(users, on="user", how="left", maintain_order="left")
    events = events.join(kept, on="item", how="left", maintain_order="left")
    events = events.select("user_id", "item_id", "timestamp")
    events = events.sort("user_id", "timestamp", maintain_order=True)
    position, length = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
    events = events.with_columns(position=position.cast(pl.Int32), left=length - 1 - position)
    split = pl.when(pl.col("left") == 0).then(2).when(pl.col("left") == 1).then(1).otherwise(0)
    events = events.with_columns(split=split.cast(pl.Int8)).drop("left")
    (folder / "polars").mkdir(exist_ok=True)
    events.write_parquet(folder / "polars" / "interactions.parquet", compression="zstd")
    return {"users": users.height, "items": kept.height, "interactions": events.height}


CONTENDERS = {"catalex": with_catalex, "pandas": with_pandas, "polars": with_polars}


def measured(contender: str, folder: Path) -> dict[str, object]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--contender", contender, "--folder", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        return {"failed": finished.stderr.strip().splitlines()[-1:] or [f"signal {-finished.returncode}"]}
    result: dict[str, object] = json.loads(finished.stdout.splitlines()[-1])
    return result


def same_events(folder: Path, peer: str) -> bool:
    """Whether a peer kept the same events at the same places in the same parts; user ids may differ."""
    ours, theirs = (pl.read_parquet(folder / who / "interactions.parquet") for who in ("catalex", peer))
    columns = ["item_id", "position", "timestamp", "split"]
    return (
        ours.select(columns)
        .sort(columns)
        .equals(theirs.select(columns).cast(ours.select(columns).schema).sort(columns))
    )


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians over the rounds of each contender; a peer is run until it fails."""
    names = ["catalex", *arguments.against]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name in names:
            if not any("failed" in found for found in rounds[name]):
                rounds[name].append(measured(name, folder))
    report = {}
    for name, runs in rounds.items():
        report[name] = dict(runs[-1])
        if "failed" not in runs[-1]:
            for key in KEYS:
                report[name][key] = statistics.median(run[key] for run in runs)
            report[name]["same_events"] = name == "catalex" or same_events(folder, name)
    return report


def main() -> None:
    """Generate, run, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interactions", type=int, default=2_000_000)
    parser.add_argument(
        "--against",
        nargs="*",
        choices=["pandas", "polars"],
        default=["pandas", "polars"],
        help="none for very many interactions: pandas needs several times the memory",
    )
    parser.add_argument("--rounds", type=int, default=2, help="the contenders in turn")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        started = time.perf_counter(), time.process_time()
        counts = CONTENDERS[arguments.contender](arguments.folder)
        seconds, processor = time.perf_counter() - started[0], time.process_time() - started[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        result = {"seconds": round(seconds, 2), "cpu_seconds": round(processor, 2)}
        print(json.dumps({**result, "peak_gib": round(peak / 2**30, 2), "counts": counts}))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        generate(folder, arguments.interactions)
        report: dict[str, Any] = {
            "interactions": arguments.interactions,
            "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "python": platform.python_version(),
            "polars": pl.__version__,
            "contenders": compare(folder, arguments),
        }
        print(json.dumps(report, indent=1))
        if arguments.record is not None:
            for line in ledger_lines(report):
                append(arguments.record, line)


BASELINES = {"pandas": "pandas idiom", "polars": "plain polars"}


def ledger_lines(report: dict[str, Any]) -> list[BenchmarkLine]:
    """Seconds and peak memory beside each peer that did it, or alone."""
    lines, found = [], report["contenders"]
    peers = [name for name in found if name != "catalex" and "seconds" in found[name]]
    for key, unit in KEYS.items():
        for peer in peers or [None]:
            name = f"prepare/{report['interactions']:,}-interactions-{key}"
            values = {"name": name, "value": found["catalex"][key], "unit": unit}
            if peer is not None:
                theirs = found[peer][key]
                values |= {"name": name if peer == "pandas" else f"{name}-{peer}"}
                values |= {"baseline": BASELINES[peer], "baseline_value": theirs}
                values |= {"ratio": round(theirs / found["catalex"][key], 2)}
            lines.append(BenchmarkLine.parse(values, "prepare"))
    return lines


if __name__ == "__main__":
    main()
