"""Speed of quantizing vectors and of conflict handling, against plain code and the limits of the machine.

    python benchmarks/tokenizing.py
    python benchmarks/tokenizing.py --items 1000000 --threads 1
    python benchmarks/tokenizing.py --device cuda --items 1000000 --part quantize

Quantizing: L levels of K codes of residual quantization, `encode` of a tokenizer (checks and copies included)
and the product it is made of, against ``torch.cdist`` and ``argmin`` level after level; as a share of the
measured matrix peak, and of the bandwidth of a copy. On a CUDA device, where tokenizers do not run, the
`quantize` layer alone. Conflicts: seconds of `resolve` for clustered vectors and for a prefix that very many
items share; a plain Python loop solves smaller ones, where results must be equal. The contenders take turns.

What is going on is told on stderr, the result is one JSON object on stdout. A contender that takes longer
than `--limit` seconds is timed once, in the comparison of the answers, and not again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import SIDES, matrix_peak, measure, wait
from torch import Tensor

from catalex.quantize import in_blocks, kmeans, nearest, residual_distances, residual_encoder
from catalex.quantize.distances import BLOCK
from catalex.reporting.ledger import BenchmarkLine, append
from catalex.tokenizers import CodeSpace
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import Training
from catalex.tokenizers.normalise import Normaliser
from catalex.tokenizers.rqkmeans import RQKMeans, RQKMeansOptions
from catalex.types import Codes, Floats

LEARNT_FROM = 50_000
"""Vectors at most that codebooks are learned from."""
PEER_ROWS = 8192
"""Vectors that the plain code compares at once."""
CUDA_BLOCK = 32768
"""Their distances to 256 codes just fit the cache of an H100."""
CONFLICT_WIDTH = 64
CROWD = 100_000
"""Items that share one prefix in the nasty case."""


def clustered(items: int, width: int, spread: float) -> Floats:
    """``(N, D)`` Gaussian clusters, 200 items around each centre."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(items // 200, 500), width), dtype=np.float32)
    vectors = random.standard_normal((items, width), dtype=np.float32)
    vectors *= spread
    vectors += centres[random.integers(0, len(centres), items)]
    return vectors


def say(text: str) -> None:
    """Tell on stderr at once."""
    print(text, file=sys.stderr, flush=True)


def codebooks_of(vectors: Floats, levels: int, size: int, device: str = "cpu") -> list[Tensor]:
    """Residual codebooks ``(K, D)`` by a few rounds of k-means, on the CPU."""
    rest, found = torch.from_numpy(vectors[:LEARNT_FROM].copy()).to(device), []
    for level in range(levels):
        # a sampled start: k-means++ takes a step a code, which a host with busy cores makes minutes of
        found.append(kmeans(rest, size, seed=level, iterations=5, init="sample").centroids)
        rest = rest - found[-1][nearest(rest, found[-1])]
    return [codebook.cpu() for codebook in found]


def with_cdist(vectors: Tensor, codebooks: list[Tensor]) -> Tensor:
    """What notebooks do: distances to all codes, the smallest, subtract, again."""
    parts = []
    for start in range(0, len(vectors), PEER_ROWS):
        rest, codes = vectors[start : start + PEER_ROWS], []
        for codebook in codebooks:
            codes.append(torch.cdist(rest, codebook).argmin(1))
            rest = rest - codebook[codes[-1]]
        parts.append(torch.stack(codes, 1))
    return torch.cat(parts)


def tokenizer_of(codebooks: list[Tensor]) -> RQKMeans:
    """A residual k-means tokenizer with these codebooks."""
    width = codebooks[0].shape[1]
    made = RQKMeans(
        RQKMeansOptions.parse({"levels": len(codebooks), "codebook_size": len(codebooks[0])}, "benchmark")
    )
    made.codebooks = codebooks
    made.normaliser = Normaliser.fit("none", torch.zeros(1, width), torch.ones(1))
    made.training = Training.of([], width)
    return made


def quantizing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, vectors a second and shares of the peaks."""
    device, width, items = arguments.device, arguments.width, arguments.items
    say(f"drawing {items:,} vectors of {width}")
    rows = clustered(items, width, 0.5)
    say("learning codebooks")
    codebooks = codebooks_of(rows, arguments.levels, arguments.codes, device)
    vectors = torch.from_numpy(rows).to(device)  # where they are before the clock starts
    tables = [codebook.to(device) for codebook in codebooks]
    encode, block = residual_encoder(tables), BLOCK if device == "cpu" else CUDA_BLOCK
    contenders: dict[str, Callable[[], Any]] = {
        "catalex": lambda: in_blocks(encode, vectors, block=block),
        "cdist": lambda: with_cdist(vectors, tables),
    }
    if device == "cpu":
        tokenizer = tokenizer_of(codebooks)
        contenders["tokenizer"] = lambda: torch.from_numpy(tokenizer.encode(rows))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    slow: set[str] = set()
    codes: dict[str, Tensor] = {}
    for number in range(arguments.rounds + 1):
        for name in [one for one in contenders if one not in slow]:
            wait(device)
            began = time.perf_counter(), time.process_time()
            codes[name] = contenders[name]()
            wait(device)
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            say(f"round {number} of {arguments.rounds}, {name}: {taken[0]:.3f} s")
            if number == 0 and taken[0] > arguments.limit:
                slow.add(name)
            times[name] += [taken] if number or name in slow else []
    same = float((codes["catalex"] == codes["cdist"]).all(1).float().mean())
    say("measuring the peaks")
    operations = 2.0 * items * width * sum(len(table) for table in tables)
    read = 4.0 * items * width
    peak, copy = matrix_peak(torch.float32, SIDES[device], device), copy_bandwidth(device)
    found: dict[str, Any] = {"same_codes_as_cdist": same, "peak_gflops": peak / 1e9, "copy_gb": copy / 1e9}
    found["binds"] = "matrix peak" if operations / peak > read / copy else "bandwidth"
    for name, pairs in times.items():
        wall, processor = (statistics.median(column) for column in zip(*pairs, strict=True))
        # the peak on a CPU is by the time that its threads were given, so this is too
        second = wall if device != "cpu" else processor / torch.get_num_threads()
        found[name] = {
            "seconds": wall,
            "items_per_second": items / second,
            "of_matrix_peak": operations / second / peak,
            "of_bandwidth": read / second / copy,
        }
    return found


def copy_bandwidth(device: str) -> float:
    """Bytes a second that are read when a large array is copied."""
    source = torch.ones(2**26 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    found = measure(lambda _: target.copy_(source), 1, 10, device)
    second = found.second if device != "cpu" else statistics.median(found.processor) / torch.get_num_threads()
    return float(4 * len(source) / second)


class Plain:
    """A tokenizer that is nothing but codebooks."""

    def __init__(self, codebooks: list[Tensor]) -> None:
        self.codebooks = codebooks
        self.space = CodeSpace.of(len(codebooks), len(codebooks[0]))
        self.order = tuple(range(len(codebooks)))

    def encode(self, vectors: Floats) -> Codes:
        """``(N, L)`` nearest codes."""
        found = in_blocks(residual_encoder(self.codebooks), torch.from_numpy(vectors))
        return found.numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` to the codes after `prefix`."""
        rows, before = torch.from_numpy(vectors), torch.from_numpy(prefix.astype(np.int64))
        found: Floats = in_blocks(lambda v, c: residual_distances(v, c, self.codebooks), rows, before).numpy()
        return found


def plain_conflicts(tokenizer: Plain, vectors: Floats, codes: Codes) -> Codes:
    """The rule where every prefix has room: item after item takes the nearest free last code."""
    near = tokenizer.distances(vectors, codes[:, :-1])
    result = codes.copy()
    groups: dict[tuple[int, ...], list[int]] = {}
    own = near[np.arange(len(codes)), codes[:, -1]]
    for item in np.lexsort((np.arange(len(codes)), own, *codes[:, :-1].T[::-1])).tolist():
        groups.setdefault(tuple(codes[item].tolist()), []).append(item)
    movers = [item for members in groups.values() for item in members[1:]]
    owned = set(groups)
    for item in sorted(movers, key=lambda item: (tuple(codes[item, :-1].tolist()), own[item], item)):
        prefix = tuple(codes[item, :-1].tolist())
        for code in np.argsort(near[item], kind="stable").tolist():
            if (*prefix, code) not in owned:
                owned.add((*prefix, code))
                result[item, -1] = code
                break
        else:
            raise ValueError("a prefix is full")
    return result


def conflicts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each case, and of the plain loop on a smaller one."""
    found: dict[str, Any] = {}
    for levels, spread, crowd in ((3, 0.15, 0), (3, 0.6, 0), (4, 0.6, 0), (3, 0.6, CROWD)):
        vectors = clustered(arguments.items, CONFLICT_WIDTH, spread)
        say(f"conflicts of {arguments.items:,} items: {levels} levels, spread {spread}, crowd {crowd:,}")
        tokenizer: Any = Plain(codebooks_of(vectors, levels, arguments.codes))
        codes = tokenizer.encode(vectors)
        codes[: min(crowd, len(codes) // 2), :-1] = codes[0, :-1]
        began = time.perf_counter(), time.process_time()
        after = resolve(tokenizer, vectors, codes)
        row: dict[str, Any] = {
            "seconds": time.perf_counter() - began[0],
            "cpu_seconds": time.process_time() - began[1],
        }
        row |= {"moved": int((after != codes).any(1).sum()), "distinct": len(np.unique(codes, axis=0))}
        row["unique"] = len(np.unique(after, axis=0)) == len(after)
        found[f"{levels} levels, spread {spread}" + (", a crowd" if crowd else "")] = row
    found["plain loop"] = beside_plain(arguments)
    return found


def beside_plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """`resolve` and the plain loop in turn on few items, which leave room under every prefix."""
    items = min(arguments.items, 50_000)
    vectors = clustered(items, CONFLICT_WIDTH, 0.3)
    tokenizer: Any = Plain(codebooks_of(vectors, 3, arguments.codes))
    codes = tokenizer.encode(vectors)
    runs: dict[str, Callable[[], Codes]] = {
        "catalex": lambda: resolve(tokenizer, vectors, codes),
        "plain": lambda: plain_conflicts(tokenizer, vectors, codes),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            began = time.process_time()
            results[name] = run()
            times[name].append(time.process_time() - began)
    medians = {f"{name}_cpu_seconds": statistics.median(found) for name, found in times.items()}
    same = bool((results["catalex"] == results["plain"]).all())
    return {"items": items, "moved": int((results["plain"] != codes).any(1).sum()), "same": same, **medians}


def ledger_lines(report: dict[str, Any]) -> list[BenchmarkLine]:
    """The rate beside cdist, its share of what binds, and the seconds of conflict handling."""
    lines, stem = [], f"tokenize/{report['device']}"
    if "quantize" in report:
        found = report["quantize"]
        ours, peer = found["catalex"], found["cdist"]["items_per_second"]
        bound = "of_matrix_peak" if found["binds"] == "matrix peak" else "of_bandwidth"
        rate = {"name": f"{stem}-quantize-rate", "value": ours["items_per_second"], "unit": "items/s"}
        rate |= {"baseline": "torch.cdist + argmin", "baseline_value": peer}
        rate |= {"ratio": round(ours["items_per_second"] / peer, 2)}
        share = {"name": f"{stem}-quantize-share-of-{found['binds'].replace(' ', '-')}", "unit": "share"}
        lines += [rate, share | {"value": ours[bound]}]
    for case, row in report.get("conflicts", {}).items():
        if case == "plain loop":
            ours, peer = row["catalex_cpu_seconds"], row["plain_cpu_seconds"]
            values = {"name": f"{stem}-conflicts-{row['items']:,}", "value": ours, "unit": "s"}
            values |= {
                "baseline": "plain Python loop",
                "baseline_value": peer,
                "ratio": round(peer / ours, 2),
            }
        else:
            case = case.replace(", ", "-").replace(" ", "-")
            values = {"name": f"{stem}-conflicts-{report['items']:,}-{case}", "unit": "s"}
            of_processor = values | {"name": values["name"] + "-cpu_seconds"}
            lines.append(of_processor | {"value": round(row["cpu_seconds"], 3)})
            values |= {"value": round(row["seconds"], 3)}
        lines.append(values)
    return [BenchmarkLine.parse(values, "tokenize") for values in lines]


def main() -> None:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="the contenders in turn")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds; slower contenders run once")
    parser.add_argument("--part", choices=["quantize", "conflicts"], help="default: both")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    report: dict[str, Any] = {"device": arguments.device, "items": arguments.items, "machine": machine}
    report |= {"threads": arguments.threads, "torch": torch.__version__, "numpy": np.__version__}
    if arguments.part != "conflicts":
        report["quantize"] = quantizing(arguments)
    if arguments.part != "quantize":
        report["conflicts"] = conflicts(arguments)
    print(json.dumps(report, indent=1, default=float))
    if arguments.record is not None:
        for line in ledger_lines(report):
            append(arguments.record, line)


if __name__ == "__main__":
    main()
