"""Time of the resident decoding engine on a CUDA device, against transformers and against the hardware.

The answers of engine and peers are compared with those of beam search first (fp32: scores within 1e-4;
bf16: items in common). Then engine and peers take turns. Printed are latencies at batch 1 (median, 99th
percentile), microseconds a user at larger batches with the share of the measured matrix peak, the share of
the device's time that choosing among the trie's nodes takes, and what masks cost.

    python benchmarks/decode_cuda.py
    python benchmarks/decode_cuda.py --sweep items --sizes 10000 25000 1000000 10000000
    python benchmarks/decode_cuda.py --constraint
    python benchmarks/decode_cuda.py --profile

Without a CUDA device it says so and ends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _decode_peers import MASK, TRIE, Mask, Peer, PythonTrie, as_transformers
from _decode_work import CODES, catalogue, histories, operations
from _measuring import matrix_peak

from catalex.decoding import Trie, beam_search
from catalex.decoding.engine import Engine
from catalex.models.t5 import T5, T5Options
from catalex.reporting.ledger import BenchmarkLine, append

K = 10
SIZES = {
    "items": [10_000, 25_000, 100_000, 1_000_000, 10_000_000],
    "beam": [10, 20, 50, 100, 200, 500],
    "history": [5, 10, 20, 50, 100],
}
CHOOSING = ("expand", "narrow", "rank", "advance", "close")
"""Kernels that walk the trie; the head's product and log-sum-exp are the model's."""


def main() -> None:
    options = arguments()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure here (benchmarks/decode.py measures the CPU)")
        return
    torch.manual_seed(0)
    rows = catalogue(options.items, options.levels)
    vocabulary = CODES * options.levels + 2  # padding and end token
    model = T5(vocabulary, T5Options(preset=options.preset)).eval().to("cuda")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "preset", options.preset)
    if options.sweep is not None:
        sweep(options, model)
        return
    if options.constraint:
        constraint(options, model)
        return
    trie = Trie(rows)
    engine = Engine(model, trie, beam=options.beam, k=K, precision=options.precision)
    print(f"{options.items:,} items, beam {options.beam}, {options.precision}, kind {engine.kind}")
    write = partial(histories, rows, length=options.history, end=vocabulary - 1)
    peers = {} if options.without_peers else make_peers(options, model, trie, rows)
    check(options, model, trie, engine, peers, write(64))
    latency(options, engine, peers, write(1))
    matrix, bandwidth = matrix_peak(torch.bfloat16, 8192, "cuda"), copy_rate()
    print(f"measured: {matrix / 1e12:.0f} TFLOP/s in bf16 products, {bandwidth / 1e12:.2f} TB/s copying")
    for batch in options.batches:
        tokens = write(batch)
        wall = seconds(partial(engine.search, tokens), options.repeats)
        least = operations(model, tokens.shape[1], options.levels, options.beam) / (wall / batch)
        print(
            f"batch {batch:5d}: {wall / batch * 1e6:7.2f} us a user, {batch / wall:9.0f} users/s, "
            f"{least / 1e12:5.0f} TFLOP/s, {least / matrix:.1%} of the matrix peak"
        )
        record(options, f"batch-{batch}", wall / batch * 1e6, "us a user", "matrix peak", least / matrix)
        stream(options, engine, tokens)
        shares(options, engine, tokens)
    restrictions(options, engine, write(options.batches[-1]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiger", help="sizes of the model: tiger, mtg, mini")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--items", type=int, default=25_000)
    parser.add_argument("--levels", type=int, default=3, help="codes of an item")
    parser.add_argument("--history", type=int, default=20, help="items of a history")
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500, help="single requests for the percentiles")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--sweep", choices=list(SIZES), help="against one size instead")
    parser.add_argument("--sizes", type=int, nargs="+", help="values of the sweep")
    parser.add_argument(
        "--constraint", action="store_true", help="against a catalogue that restricts nothing"
    )
    parser.add_argument("--profile", action="store_true", help="print a table of kernels")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    return parser.parse_args()


def check(
    options: argparse.Namespace,
    model: T5,
    trie: Trie,
    engine: Engine,
    peers: dict[str, Peer],
    tokens: torch.Tensor,
) -> None:
    """Compare all answers with those of beam search in float32; stop when they are others."""
    expected = beam_search(model, tokens.cuda(), trie, beam=options.beam, k=K)
    exact = Engine(model, trie, beam=options.beam, k=K).search(tokens)
    difference = (exact.scores - expected.scores.cpu()).abs().max().item()
    for name, peer in peers.items():
        scores = peer(tokens[:8].cuda())[1]
        apart = (scores - expected.scores[:8].cpu()).abs().max().item()
        print(f"{name}: largest score difference {apart:.1e}")
        difference = max(difference, apart)
    found = engine.search(tokens).items
    pairs = zip(found.tolist(), expected.items.tolist(), strict=True)
    common = statistics.mean(len(set(ours) & set(theirs)) / K for ours, theirs in pairs)
    print(f"largest score difference {difference:.1e}; {options.precision}: {common:.2%} of top {K} found")
    if difference > 1e-4 or common < 0.9:
        raise SystemExit("the answers differ; timing them would mean nothing")
    record(options, f"top-{K}-in-common", common * 100, "%")


def make_peers(options: argparse.Namespace, model: T5, trie: Trie, rows: Any) -> dict[str, Peer]:
    theirs = as_transformers(model, "cuda")
    mask = Mask(trie.to("cuda"))
    return {
        TRIE: Peer(theirs, PythonTrie(rows), trie, options.beam, K),
        MASK: Peer(theirs, mask, trie, options.beam, K),
    }


def latency(
    options: argparse.Namespace, engine: Engine, peers: dict[str, Peer], tokens: torch.Tensor
) -> None:
    """Single requests: engine and peers in turn."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    ours: list[float] = []
    on_device = tokens.cuda()
    rounds = 10
    for number in range(rounds + 1):
        for name, peer in peers.items():
            elapsed = timed(partial(peer, on_device))
            times[name] += [elapsed] if number else []
        several = [timed(partial(engine.search, tokens)) for _ in range(options.requests // rounds)]
        ours += several if number else []
    median, worst = np.percentile(ours, [50, 99])
    print(f"batch 1: p50 {median * 1e3:.3f} ms, p99 {worst * 1e3:.3f} ms = {worst / median:.2f} x p50")
    record(options, "batch-1-p50", median * 1e3, "ms")
    record(options, "batch-1-p99", worst * 1e3, "ms")
    for name, values in times.items():
        theirs = statistics.median(values)
        print(f"batch 1: {name} {theirs * 1e3:.1f} ms, {theirs / median:.0f} x ours")
        record(options, "batch-1", median * 1e3, "ms", name, theirs / median)


def shares(options: argparse.Namespace, engine: Engine, tokens: torch.Tensor) -> None:
    """The device's time by kernel: share of choosing, share of the call, and the table when asked for."""
    kernels = by_kernel(partial(engine.search, tokens))
    total = sum(kernels.values())
    choosing = sum(value for name, value in kernels.items() if name.split("(")[0] in CHOOSING)
    print(f"             {total / len(tokens):.2f} us a user on the device, choosing {choosing / total:.1%}")
    record(options, f"batch-{len(tokens)}-choosing", choosing / total * 100, "% of the device's time")
    if options.profile:
        for name, value in sorted(kernels.items(), key=lambda pair: -pair[1])[:25]:
            print(f"             {value:10.1f} us {value / total:6.1%}  {name[:80]}")


def stream(options: argparse.Namespace, engine: Engine, tokens: torch.Tensor) -> None:
    """Batches one after another, each handed over while the device works on the one before."""
    users, count = len(tokens), 10

    def run() -> None:
        for _ in engine.search_each((tokens, None) for _ in range(count)):
            pass

    wall = seconds(run, max(options.repeats // count, 3)) / count
    print(f"             {wall / users * 1e6:.2f} us a user, one batch after another")
    record(options, f"batch-{users}-stream", wall / users * 1e6, "us a user")


def by_kernel(run: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of the device in each kernel during a call."""
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            run()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 5 for event in profiler.key_averages()}


def restrictions(options: argparse.Namespace, engine: Engine, tokens: torch.Tensor) -> None:
    """What filters and excluded items add, in turn with a search that has none."""
    users, size = len(tokens), engine.trie.size
    generator = np.random.default_rng(0)
    engine.set_filters(generator.random((8, size)) < 0.5)
    chosen = torch.from_numpy(generator.integers(0, 8, users))
    excluded = torch.from_numpy(generator.integers(0, size, (users, 20)))
    runs = {
        "no restriction": partial(engine.search, tokens),
        "filters": partial(engine.search, tokens, filters=chosen),
        "20 excluded items": partial(engine.search, tokens, excluded=excluded),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.repeats + 2):
        for name, run in runs.items():
            elapsed = timed(run)
            found[name] += [elapsed] if number > 1 else []
    plain = statistics.median(found["no restriction"])
    for name, values in found.items():
        print(f"batch {users}, {name}: {statistics.median(values) / plain:.3f} x")
        record(options, f"batch-{users}-{name.replace(' ', '-')}", statistics.median(values) / plain, "x")
    if not options.profile:
        return
    kernels = {name: by_kernel(run) for name, run in runs.items()}
    for kernel in sorted(set().union(*kernels.values())):
        values = [found.get(kernel, 0.0) for found in kernels.values()]
        if max(values) - min(values) > 2:
            print("             " + "".join(f"{value:9.1f}" for value in values) + f" us  {kernel[:60]}")


def constraint(options: argparse.Namespace, model: T5) -> None:
    """Catalogues against one of all identifiers, where each code may follow each prefix.

    The search over that one is a beam search without a constraint, by the same kernels.
    """
    complete = CODES**options.levels
    sizes = [*(options.sizes or SIZES["items"]), complete]
    rows = {size: catalogue(size, options.levels) for size in sizes}
    engines = {
        size: Engine(model, Trie(rows[size]), beam=options.beam, k=K, precision=options.precision)
        for size in sizes
    }
    for batch in options.batches:
        tokens = histories(rows[sizes[0]], batch, options.history, model.vocabulary - 1)
        found: dict[int, list[float]] = {size: [] for size in sizes}
        for number in range(options.repeats + 3):
            for size, engine in engines.items():
                elapsed = timed(partial(engine.search, tokens))
                found[size] += [elapsed] if number > 2 else []
        unrestricted = statistics.median(found[complete])
        for size, values in found.items():
            ratio = statistics.median(values) / unrestricted
            kernels = by_kernel(partial(engines[size].search, tokens))
            choosing = sum(value for name, value in kernels.items() if name.split("(")[0] in CHOOSING)
            print(
                f"batch {batch:5d}, {size:>10,} items: {ratio:.3f} x of no constraint, "
                f"choosing {choosing:.1f} of {sum(kernels.values()):.1f} us"
            )
            name = f"constraint-{size}-batch-{batch}"
            record(
                options, name, statistics.median(values) / batch * 1e6, "us a user",
                "every identifier valid", ratio,
            )  # fmt: skip


def sweep(options: argparse.Namespace, model: T5) -> None:
    """Latency and throughput against one size."""
    for size in options.sizes or SIZES[options.sweep]:
        sizes = {"items": options.items, "beam": options.beam, "history": options.history}
        sizes[options.sweep] = size
        rows = catalogue(sizes["items"], options.levels)
        began = time.perf_counter()
        trie = Trie(rows)
        built = time.perf_counter() - began
        k = min(K, sizes["beam"])
        engine = Engine(model, trie, beam=sizes["beam"], k=k, precision=options.precision)
        line = f"{options.sweep} {size:>10,} ({built:.2f} s, {trie.nbytes / len(trie):.1f} bytes an item):"
        for batch in (1, 256):
            tokens = histories(rows, batch, sizes["history"], model.vocabulary - 1)
            wall = seconds(partial(engine.search, tokens), options.repeats)
            line += f"  batch {batch} {wall * 1e3:.3f} ms"
            record(options, f"sweep-{options.sweep}-{size}-batch-{batch}", wall * 1e3, "ms a batch")
        print(line)


def copy_rate() -> float:
    """Bytes a second of a large copy on the device, read and written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: (target.copy_(source), torch.cuda.synchronize()), 10)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median time of a call that ends with its results, after three that are not counted."""
    return statistics.median([timed(run) for _ in range(repeats + 3)][3:])


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def record(
    options: argparse.Namespace,
    name: str,
    value: float,
    unit: str,
    baseline: str | None = None,
    ratio: float | None = None,
) -> None:
    """Append one line to the ledger, where one is named."""
    if options.record is None:
        return
    values: dict[str, Any] = {"name": f"decode-cuda/{name}", "value": round(value, 4), "unit": unit}
    if baseline is not None and ratio is not None:
        values |= {"baseline": baseline, "ratio": round(ratio, 4)}
    append(options.record, BenchmarkLine.parse(values, "decode-cuda"))


if __name__ == "__main__":
    main()
