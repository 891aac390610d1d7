"""Seconds and peak memory of training UniTok and of tokenizing with it, against joint residual k-means.

    python benchmarks/tokenizer_speed.py --items 1000000 --domains 9 --threads 1
    python benchmarks/tokenizer_speed.py --items 90000 --domains 1 3 9 --threads 1

Vectors are Gaussian clusters around random centres, a share of them for each domain, made from a seed. Every
measurement is a process of its own, so that its peak memory is its own: the training holds all vectors, the
tokenizing reads them from disk piece by piece. The contenders take turns. Next to seconds stand seconds of
processor time, which depend less on what else the machine is doing.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalex.data.histories import Histories
from catalex.reporting.ledger import BenchmarkLine, append
from catalex.tokenizers import TokenizerDomain, load_tokenizer, make_tokenizer
from catalex.types import Floats

CONTENDERS: dict[str, dict[str, Any]] = {
    "unitok": {"name": "unitok"},
    "residual k-means": {"name": "rqkmeans", "iterations": 20},  # as many as place UniTok's codebooks
}
CENTRES = 2000
"""Cluster centres a domain."""
PIECE = 16_384
"""Vectors made, and tokenized, at a time."""
UNITS = {
    "train_seconds": "s",
    "train_cpu_seconds": "s",
    "train_peak_gib": "GiB",
    "items_per_second": "items/s",
    "items_per_cpu_second": "items/s",
    "tokenize_peak_gib": "GiB",
}


def write_vectors(folder: Path, items: int, domains: int, width: int) -> None:
    """A file of float32 unit vectors ``(N, D)`` around the centres of each domain."""
    for number in range(domains):
        random = np.random.default_rng(number)
        centres = random.normal(size=(CENTRES, width)).astype(np.float32) + 2 * random.normal(size=width)
        with (folder / f"domain-{number}.f32").open("wb") as file:
            for start in range(0, items // domains, PIECE):
                found = centres[random.integers(0, CENTRES, min(PIECE, items // domains - start))]
                found += 0.7 * random.standard_normal(size=found.shape, dtype=np.float32)
                (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32).tofile(file)


def pieces(file: Path, width: int, rows: int) -> Iterator[Floats]:
    """The vectors of a file, at most `rows` at a time."""
    with file.open("rb") as stream:
        while len(found := np.fromfile(stream, dtype=np.float32, count=rows * width)):
            yield found.reshape(-1, width)


def train(contender: str, folder: Path, width: int, epochs: int | None) -> dict[str, float]:
    """Train on all domains together and save the tokenizer."""
    none = Histories.from_lists([[0, 1]])
    made = [
        TokenizerDomain(file.stem, np.fromfile(file, dtype=np.float32).reshape(-1, width), none, "none")
        for file in sorted(folder.glob("*.f32"))
    ]
    settings = dict(CONTENDERS[contender])
    if epochs is not None and contender == "unitok":
        settings["epochs"] = epochs
    tokenizer = make_tokenizer(settings, domains=[domain.name for domain in made])
    wall, processor = time.perf_counter(), time.process_time()
    tokenizer.fit(made, seed=0, device="cpu")
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    tokenizer.save(folder / settings["name"])
    return {
        "train_seconds": round(wall, 2),
        "train_cpu_seconds": round(processor, 2),
        "train_peak_gib": peak_gib(),
    }


def tokenize(contender: str, folder: Path, width: int) -> dict[str, float]:
    """Tokenize all domains with the saved tokenizer, a piece at a time; reading is part of it."""
    tokenizer = load_tokenizer(folder / CONTENDERS[contender]["name"])
    items = 0
    wall, processor = time.perf_counter(), time.process_time()
    for file in sorted(folder.glob("*.f32")):
        for piece in pieces(file, width, PIECE):
            items += len(tokenizer.encode(piece))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "items_per_second": round(items / wall),
        "items_per_cpu_second": round(items / processor),
        "tokenize_peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30, 2)


def measured(step: str, contender: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run one step of one contender in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--contender", contender, "--folder", str(folder)]
    command += ["--width", str(arguments.width), "--threads", str(arguments.threads)]
    command += ["--epochs", str(arguments.epochs)] if arguments.epochs is not None else []
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def compare(domains: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All numbers of both contenders over so many domains; tokenizing is the median of its rounds."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_vectors(folder, arguments.items, domains, arguments.width)
        rows = {contender: measured("train", contender, arguments, folder) for contender in CONTENDERS}
        rounds = [
            {contender: measured("tokenize", contender, arguments, folder) for contender in CONTENDERS}
            for _ in range(arguments.rounds)
        ]
    for contender, row in rows.items():
        for key in rounds[0][contender]:
            row[key] = statistics.median(found[contender][key] for found in rounds)
    return rows


def main() -> None:
    """Compare both contenders for every number of domains; print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="over all domains together")
    parser.add_argument("--domains", type=int, nargs="+", default=[9])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--epochs", type=int, help="of UniTok; default: as many as it takes by itself")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="of tokenizing, the contenders in turn")
    parser.add_argument("--folder", type=Path, help="where the vectors are kept meanwhile")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    parser.add_argument("--step", choices=["train", "tokenize"], help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.step == "train":
        print(json.dumps(train(arguments.contender, arguments.folder, arguments.width, arguments.epochs)))
        return
    if arguments.step == "tokenize":
        print(json.dumps(tokenize(arguments.contender, arguments.folder, arguments.width)))
        return
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    report: dict[str, Any] = {"items": arguments.items, "width": arguments.width, "machine": machine}
    report |= {"threads": arguments.threads, "torch": torch.__version__, "numpy": np.__version__}
    for domains in arguments.domains:
        rows = report[f"{domains} domains"] = compare(domains, arguments)
        if arguments.record is not None:
            for line in ledger_lines(arguments.items, domains, rows):
                append(arguments.record, line)
    print(json.dumps(report, indent=1))


def ledger_lines(items: int, domains: int, rows: dict[str, dict[str, float]]) -> list[BenchmarkLine]:
    """Each number of UniTok beside residual k-means; a ratio above 1 means that UniTok is better."""
    lines = []
    for key, unit in UNITS.items():
        value, peer = rows["unitok"][key], rows["residual k-means"][key]
        ratio = value / peer if unit == "items/s" else peer / value
        values = {
            "name": f"tokenize/{items:,}-items-{domains}-domains-{key}",
            "value": value,
            "unit": unit,
            "baseline": "joint residual k-means",
            "baseline_value": peer,
            "ratio": round(ratio, 2),
        }
        lines.append(BenchmarkLine.parse(values, "tokenize"))
    return lines


if __name__ == "__main__":
    main()
