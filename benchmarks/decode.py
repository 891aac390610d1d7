"""Time of constrained beam search: catalex against transformers with a Python trie and a vectorised mask.

All decode the same histories with the same random weights over the same catalogue, and their answers are
compared before anything is timed. They take turns, so that a machine which speeds up or slows down does so
for all; medians are reported. Default sizes are those of TIGER: preset `tiger`, 25,000 items of 3 codes of
256, histories of 20 items and an end token (61 tokens), beam 50, the 10 best items.

On a CPU everything is measured twice: as installed, and in a process whose malloc keeps the memory that it
has. transformers copies hundreds of megabytes a batch, which the usual malloc gives back to the system each
time; the second figure shows what remains of the ratio without that.

`--evaluation` times the whole evaluation protocol over `--users` users against the search of the same
batches.

    python benchmarks/decode.py
    python benchmarks/decode.py --sweep items --sizes 10000 25000 1000000 10000000
    python benchmarks/decode.py --sweep beam
    python benchmarks/decode.py --evaluation
    python benchmarks/decode.py --device cuda --batches 1 8 32 256 --repeats 20
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from _decode_evaluation import measured
from _decode_peers import MASK, TRIE, Answer, Mask, Peer, PythonTrie, as_transformers
from _decode_work import CODES, catalogue, histories, operations

import catalex.decoding.beam
from catalex.decoding import Trie, beam_search
from catalex.models.t5 import T5, T5Options
from catalex.reporting.ledger import BenchmarkLine, append

K = 10
SIDE = 1024
"""Side of the matrices whose product is the peak."""
PRODUCTS = 8
OURS = "catalex"
PEAK = "matrix product"
SIZES = {
    "items": [10_000, 25_000, 100_000, 1_000_000, 10_000_000],
    "beam": [10, 20, 50, 100, 200, 500],
    "history": [5, 10, 20, 50, 100],
}
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
"""Settings with which glibc's malloc gives nothing back to the system."""

Times = tuple[float, float]
"""Seconds by the clock, and of processor time (disturbed less by a busy machine; nothing of a GPU)."""


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    describe(options)
    if options.sweep is not None:
        sweep(options)
        return
    if options.evaluation:
        evaluation(options)
        return
    kept = "MALLOC_MMAP_MAX_" in os.environ
    print("malloc keeps its memory" if kept else "malloc as installed")
    rows = catalogue(options.items, options.levels)
    model, trie = new_model(options), built(rows)
    peers: dict[str, Peer] = {}
    if not options.without_peer:
        theirs = as_transformers(model, options.device)
        mask = Mask(trie.to(options.device))
        peers[TRIE] = Peer(theirs, PythonTrie(rows), trie, options.beam, K)
        peers[MASK] = Peer(theirs, mask, trie, options.beam, K)
    for batch in options.batches:
        tokens = histories(rows, batch, options.history, model.vocabulary - 1).to(options.device)
        ours = partial(search, model, tokens, trie, options.beam, options.precision)
        runs: dict[str, Callable[[], Any]] = {OURS: ours, PEAK: partial(products, options)}
        if batch <= options.largest_peer_batch:
            runs |= {name: partial(peer, tokens) for name, peer in peers.items()}
        for name in runs.keys() & peers.keys():
            agreement(batch, name, ours(), runs[name](), options.precision)
        times = measure(runs, options.repeats)
        share = selection_share(ours, options.repeats) if options.device == "cpu" else None
        report(batch, times, model, tokens.shape[1], share, options, kept)
    if options.device == "cpu" and not kept and not options.only_as_installed:
        sys.stdout.flush()
        subprocess.run([sys.executable, *sys.argv], env=os.environ | KEEPING, check=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--preset", default="tiger", help="sizes of the model: tiger, mtg, mini")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="of catalex; the peer is fp32"
    )
    parser.add_argument("--items", type=int, default=25_000)
    parser.add_argument("--levels", type=int, default=3, help="codes of an item")
    parser.add_argument("--history", type=int, default=20, help="items of a history")
    parser.add_argument("--beam", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-peer", action="store_true", help="time catalex alone")
    parser.add_argument(
        "--largest-peer-batch", type=int, default=8, help="larger batches are timed without peers"
    )
    parser.add_argument("--only-as-installed", action="store_true", help="no second run with malloc's memory")
    parser.add_argument("--sweep", choices=list(SIZES), help="latency of catalex against one size instead")
    parser.add_argument("--sizes", type=int, nargs="+", help="values of the sweep")
    parser.add_argument("--evaluation", action="store_true", help="a whole evaluation against its decoding")
    parser.add_argument("--users", type=int, default=1024, help="of the evaluation")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    return parser.parse_args()


def new_model(options: argparse.Namespace) -> T5:
    vocabulary = CODES * options.levels + 2  # padding and end token
    return T5(vocabulary, T5Options(preset=options.preset)).eval().to(options.device)


def built(rows: Any) -> Trie:
    began = time.perf_counter()
    trie = Trie(rows)
    seconds = time.perf_counter() - began
    bytes_each = trie.nbytes / len(trie)
    print(
        f"trie: {len(trie):,} items x {trie.length}, built in {seconds:.3f} s, {bytes_each:.1f} bytes an item"
    )
    return trie


def search(model: T5, tokens: torch.Tensor, trie: Trie, beam: int, precision: Any) -> Answer:
    found = beam_search(model, tokens, trie, beam=beam, k=min(K, beam), precision=precision)
    return found.items.cpu(), found.scores.cpu()


def products(options: argparse.Namespace) -> float:
    """Some products of square matrices; their operations are the peak."""
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    left = torch.ones(SIDE, SIDE, dtype=dtype, device=options.device)
    for _ in range(PRODUCTS):
        result = left @ left
    return float(result[0, 0])


def agreement(batch: int, name: str, ours: Answer, theirs: Answer, precision: str) -> None:
    """Print how far the answers agree; stop when float32 answers differ by more than rounding."""
    same = (ours[0] == theirs[0]).float().mean().item()
    difference = (ours[1] - theirs[1]).abs().max().item()
    print(f"batch {batch}, {name}: top {K} equal in {same:.1%}, largest score difference {difference:.1e}")
    if precision == "fp32" and difference > 1e-4:
        raise SystemExit("the answers differ; timing them would mean nothing")


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Times]]:
    """Times of each repeat of each run, the runs taking turns, after one run each that is not counted."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            run()  # ends with a copy to the CPU, which waits for the device
            if repeat:
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return times


@contextmanager
def watched(seconds: list[float]) -> Iterator[None]:
    """Collect the seconds of every selection among the trie's nodes, the constraint's only cost."""
    plain = catalex.decoding.beam.select

    def timed(*values: Any) -> Any:
        began = time.perf_counter()
        found = plain(*values)
        seconds.append(time.perf_counter() - began)
        return found

    catalex.decoding.beam.select = timed
    try:
        yield
    finally:
        catalex.decoding.beam.select = plain


def selection_share(run: Callable[[], Any], repeats: int) -> float:
    """Median share of a decode spent choosing children, the beam search's own top-k included."""
    shares = []
    for _ in range(repeats):
        seconds: list[float] = []
        with watched(seconds):
            began = time.perf_counter()
            run()
            shares.append(sum(seconds) / (time.perf_counter() - began))
    return statistics.median(shares)


def sweep(options: argparse.Namespace) -> None:
    """Latency against catalogue size, beam or history; all values take turns."""
    batch, model = options.batches[0], new_model(options)
    runs: dict[str, Callable[[], Any]] = {}
    tries: dict[int, Trie] = {}
    for size in options.sizes or SIZES[options.sweep]:
        sizes = {
            "items": options.items,
            "beam": options.beam,
            "history": options.history,
            options.sweep: size,
        }
        rows = catalogue(sizes["items"], options.levels)
        if sizes["items"] not in tries:
            tries[sizes["items"]] = built(rows)
        tokens = histories(rows, batch, sizes["history"], model.vocabulary - 1).to(options.device)
        run = partial(search, model, tokens, tries[sizes["items"]], sizes["beam"], options.precision)
        runs[f"{size:,}"] = run
    for name, values in measure(runs, options.repeats).items():
        wall, busy = (statistics.median(column) * 1e3 for column in zip(*values, strict=True))
        line = f"{options.sweep} {name:>10s}, batch {batch}: {wall:8.2f} ms, processor {busy:8.2f} ms"
        if options.device == "cpu":
            line += f", selection {selection_share(runs[name], options.repeats):.1%}"
        print(line)
        if options.record is not None:
            where = f"{options.device.split(':')[0]}-batch-{batch}-{options.precision}"
            record(options, f"sweep-{options.sweep}-{name}-{where}", round(wall, 3), "ms a batch")


def evaluation(options: argparse.Namespace) -> None:
    """A whole evaluation against its decoding alone."""
    found = measured(options)
    whole, alone = found["evaluation"], found["decoding"]
    print(
        f"evaluation of {options.users:,} users: {whole:.3f} s, its decoding {alone:.3f} s, "
        f"{found['ratio']:.3f} x ({found['smallest']:.3f} to {found['largest']:.3f})"
    )
    name = f"evaluation-{options.device.split(':')[0]}-{options.users}-users"
    baseline = "decoding alone"
    record(options, name, round(whole, 3), "s", baseline, round(alone, 3), found["ratio"])
    if "within" in found:
        print(f"{found['within']:.4f} x of its own searches")
        record(options, f"{name}-within", round(found["within"], 4), "x of its own searches")


def describe(options: argparse.Namespace) -> None:
    cpu = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    print(torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu, platform.machine())
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(f"T5 preset {options.preset}, {options.precision}, beam {options.beam}")


def report(
    batch: int,
    times: dict[str, list[Times]],
    model: T5,
    tokens: int,
    share: float | None,
    options: argparse.Namespace,
    kept: bool,
) -> None:
    """Print times, ratios and the share of the matrix peak, and record them when asked to."""
    wall = {name: statistics.median(each[0] for each in values) for name, values in times.items()}
    busy = {name: statistics.median(each[1] for each in values) for name, values in times.items()}
    for name, values in times.items():
        spread = f"{min(values)[0] * 1e3:.1f} to {max(values)[0] * 1e3:.1f}"
        milliseconds = f"{wall[name] * 1e3:9.1f} ms ({spread}), processor {busy[name] * 1e3:9.1f} ms"
        rate = "" if name == PEAK else f", {batch / wall[name]:9.1f} users/s"
        print(f"batch {batch:4d}  {name:44s} {milliseconds}{rate}")
    device = options.device.split(":")[0]
    place = f"{device}-batch-{batch}-beam-{options.beam}-{options.precision}{'-malloc-kept' if kept else ''}"
    for peer in (TRIE, MASK):
        if peer in wall:
            ratio = wall[peer] / wall[OURS]
            line = f"{ratio:.1f} by the clock, {busy[peer] / busy[OURS]:.1f} by processor time"
            print(f"batch {batch:4d}  {peer} / {OURS}: {line}")
            record(
                options,
                place,
                round(wall[OURS] * 1e3, 3),
                "ms a batch",
                peer,
                round(wall[peer] * 1e3, 3),
                ratio,
            )
    least = batch * operations(model, tokens, options.levels, options.beam)
    speed, peak = least / wall[OURS], PRODUCTS * 2 * SIDE**3 / wall[PEAK]
    of_peak = f"{speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {speed / peak:.1%} of the matrix peak"
    print(f"batch {batch:4d}  {least / batch / 1e9:.2f} GFLOP a user: {of_peak}")
    record(
        options, f"{place}-share-of-matrix-peak", round(speed / 1e9, 1), "GFLOP/s",
        "torch.mm", round(peak / 1e9, 1), speed / peak,
    )  # fmt: skip
    if share is not None:
        print(f"batch {batch:4d}  selection among the trie's nodes: {share:.1%} of the decode")
        record(options, f"{place}-selection", round(share * 100, 2), "% of the decode")


def record(
    options: argparse.Namespace,
    name: str,
    value: float,
    unit: str,
    baseline: str | None = None,
    baseline_value: float | None = None,
    ratio: float | None = None,
) -> None:
    """Append one line to the ledger, where one is named."""
    if options.record is None:
        return
    values: dict[str, Any] = {"name": f"decode/{name}", "value": value, "unit": unit}
    if baseline is not None and ratio is not None:
        values |= {"baseline": baseline, "baseline_value": baseline_value, "ratio": round(ratio, 3)}
    append(options.record, BenchmarkLine.parse(values, "decode"))


if __name__ == "__main__":
    main()
