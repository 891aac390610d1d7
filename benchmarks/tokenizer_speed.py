"""Seconds and peak memory of training UniTok and of tokenizing, against joint residual k-means.

    python benchmarks/tokenizer_speed.py --items 1000000 --domains 10
    python benchmarks/tokenizer_speed.py --items 90000 --domains 1 3 9

Vectors are Gaussian clusters around random centres, a share of them for each domain, made from a seed. Each
contender runs in a process of its own, so that its peak memory is its own; what the vectors themselves take
is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from catalex.data.histories import Histories
from catalex.reporting.ledger import BenchmarkLine, append
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.types import Floats

CONTENDERS: dict[str, dict[str, Any]] = {
    "unitok": {"name": "unitok"},
    "residual k-means": {"name": "rqkmeans", "iterations": 20},  # as many as place UniTok's codebooks
}
CENTRES = 2000
"""Cluster centres a domain."""


def vectors(items: int, width: int, seed: int) -> Floats:
    """``(N, D)`` unit vectors around the centres of one domain."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CENTRES, width)).astype(np.float32) + 2 * random.normal(size=width)
    found = centres[random.integers(0, CENTRES, items)]
    found += 0.7 * random.standard_normal(size=found.shape, dtype=np.float32)
    unit: Floats = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


def run(contender: str, items: int, domains: int, width: int, epochs: int | None) -> dict[str, float]:
    """Train on all domains together, then tokenize all of them."""
    none = Histories.from_lists([[0, 1]])
    made = [
        TokenizerDomain(f"domain-{number}", vectors(items // domains, width, number), none, "none")
        for number in range(domains)
    ]
    settings = dict(CONTENDERS[contender])
    if epochs is not None and contender == "unitok":
        settings["epochs"] = epochs
    tokenizer = make_tokenizer(settings, domains=[d.name for d in made])
    began = time.perf_counter()
    tokenizer.fit(made, seed=0, device="cpu")
    trained = time.perf_counter()
    for domain in made:
        tokenizer.encode(domain.vectors)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "train_seconds": round(trained - began, 2),
        "items_per_second": round(items / (done - trained)),
        "peak_gib": round(peak / 2**30, 2),
    }


def measured(contender: str, arguments: argparse.Namespace, domains: int) -> dict[str, float]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--contender", contender, "--items", str(arguments.items)]
    command += ["--domains", str(domains), "--width", str(arguments.width)]
    command += ["--epochs", str(arguments.epochs)] if arguments.epochs is not None else []
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run both contenders for every number of domains; print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="over all domains together")
    parser.add_argument("--domains", type=int, nargs="+", default=[9])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--epochs", type=int, help="of UniTok; default: as many as it takes by itself")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        first: int = arguments.domains[0]
        found = run(arguments.contender, arguments.items, first, arguments.width, arguments.epochs)
        print(json.dumps(found))
        return
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    report: dict[str, Any] = {"items": arguments.items, "width": arguments.width, "machine": machine}
    for domains in arguments.domains:
        rows = {name: measured(name, arguments, domains) for name in CONTENDERS}
        report[f"{domains} domains"] = rows
        if arguments.record is not None:
            for line in ledger_lines(arguments.items, domains, rows):
                append(arguments.record, line)
    print(json.dumps(report, indent=1))


def ledger_lines(items: int, domains: int, rows: dict[str, dict[str, float]]) -> list[BenchmarkLine]:
    """Each number of UniTok beside residual k-means; a ratio above 1 means that UniTok is better."""
    lines = []
    for key, unit in (("train_seconds", "s"), ("items_per_second", "items/s"), ("peak_gib", "GiB")):
        value, peer = rows["unitok"][key], rows["residual k-means"][key]
        ratio = value / peer if key == "items_per_second" else peer / value
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
