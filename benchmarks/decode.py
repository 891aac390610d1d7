"""Time of constrained beam search: catalex against transformers' `generate` over a Python trie, in one run.

Both decode the same histories with the same random weights over the same catalogue, and their answers are
compared before anything is timed. The two are timed in turn, so that a machine which speeds up or slows down
does so for both; the median is reported. Default sizes are those of TIGER: preset `tiger`, 25,000 items of 3
codes of 256, histories of 20 items and an end token (61 tokens), beam 50, the 10 best items.

    python benchmarks/decode.py
    python benchmarks/decode.py --device cuda --batches 1 8 32 256 --repeats 20
    python benchmarks/decode.py --items 1000000 --batches 8 --without-peer
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from catalex.decoding import Trie, beam_search
from catalex.models.t5 import T5, T5Options
from catalex.models.t5_folder import save_t5
from catalex.reporting.ledger import BenchmarkLine, append

CODES = 256
K = 10

Answer = tuple[torch.Tensor, torch.Tensor]
"""Items and scores, each ``(B, K)``."""

Times = tuple[float, float]
"""Seconds by the clock, and of processor time (disturbed less by a busy machine; nothing of a GPU)."""


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = catalogue(options.items, options.levels)
    vocabulary = CODES * options.levels + 2  # padding and end token
    model = T5(vocabulary, T5Options(preset=options.preset)).eval().to(options.device)
    began = time.perf_counter()
    trie = Trie(rows)
    built = time.perf_counter() - began
    describe(options, model, trie, built)
    peer = None if options.without_peer else Peer(model, rows, options)
    for batch in options.batches:
        tokens = histories(rows, batch, options.history, vocabulary - 1).to(options.device)
        ours = partial(search, model, tokens, trie, options)
        runs: dict[str, Callable[[], Answer]] = {"catalex": ours}
        if peer is not None:
            runs["transformers"] = partial(peer, tokens)
            agreement(batch, ours(), peer(tokens), options.precision)
        times = measure(runs, options)
        report(batch, times)
        if options.record is not None and peer is not None:
            append(options.record, ledger_line(batch, times, options))


def ledger_line(batch: int, times: dict[str, list[Times]], options: argparse.Namespace) -> BenchmarkLine:
    """Milliseconds a batch beside the peer's, for the benchmark ledger."""
    wall = {name: statistics.median(each[0] for each in values) * 1e3 for name, values in times.items()}
    where = "cuda" if options.device.startswith("cuda") else "cpu"
    values = {
        "name": f"decode/{where}-batch-{batch}-beam-{options.beam}-{options.precision}",
        "value": round(wall["catalex"], 3),
        "unit": "ms a batch",
        "baseline": "transformers generate with a Python trie",
        "baseline_value": round(wall["transformers"], 3),
        "ratio": round(wall["transformers"] / wall["catalex"], 2),
    }
    return BenchmarkLine.parse(values, "decode")


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
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    return parser.parse_args()


def catalogue(items: int, levels: int) -> np.ndarray[Any, Any]:
    """``(items, levels)`` distinct random identifiers as tokens, in random order."""
    generator = np.random.default_rng(0)
    drawn = np.unique(generator.integers(0, CODES, (items + items // 10 + 1000, levels)), axis=0)
    if len(drawn) < items:
        raise SystemExit(f"{items} distinct identifiers of {levels} codes could not be drawn; raise --levels")
    return generator.permutation(drawn)[:items] + 1 + CODES * np.arange(levels)


def histories(rows: np.ndarray[Any, Any], batch: int, length: int, end: int) -> torch.Tensor:
    """``(batch, length * L + 1)`` tokens of random items and the end token."""
    chosen = np.random.default_rng(batch).integers(0, len(rows), (batch, length))
    return torch.from_numpy(np.pad(rows[chosen].reshape(batch, -1), ((0, 0), (0, 1)), constant_values=end))


def search(model: T5, tokens: torch.Tensor, trie: Trie, options: argparse.Namespace) -> Answer:
    found = beam_search(model, tokens, trie, beam=options.beam, k=K, precision=options.precision)
    return found.items.cpu(), found.scores.cpu()


class Peer:
    """transformers' beam search with `prefix_allowed_tokens_fn` over a dict trie, the usual way to do it."""

    def __init__(self, model: T5, rows: np.ndarray[Any, Any], options: argparse.Namespace) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_t5(model, Path(folder))
            self.model = (
                transformers.T5ForConditionalGeneration.from_pretrained(folder).eval().to(options.device)
            )
        self.beam, self.levels = options.beam, rows.shape[1]
        children: dict[tuple[int, ...], set[int]] = {}
        for row in rows.tolist():
            for depth, token in enumerate(row):
                children.setdefault(tuple(row[:depth]), set()).add(token)
        self.children = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        self.items = {tuple(row): item for item, row in enumerate(rows.tolist())}

    def __call__(self, tokens: torch.Tensor) -> Answer:
        output = self.model.generate(
            tokens,
            attention_mask=(tokens != 0).long(),
            num_beams=self.beam,
            num_return_sequences=K,
            max_new_tokens=self.levels,
            length_penalty=0.0,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            prefix_allowed_tokens_fn=lambda _, prefix: self.children[tuple(prefix.tolist()[1:])],
        )
        items = [self.items[tuple(sequence[1:])] for sequence in output.sequences.tolist()]
        return torch.tensor(items).view(-1, K), output.sequences_scores.view(-1, K).cpu()


def agreement(batch: int, ours: Answer, theirs: Answer, precision: str) -> None:
    """Print how far the answers agree; stop when float32 answers differ by more than rounding."""
    same = (ours[0] == theirs[0]).float().mean().item()
    difference = (ours[1] - theirs[1]).abs().max().item()
    print(f"batch {batch}: top {K} equal in {same:.1%} of places, largest score difference {difference:.1e}")
    if precision == "fp32" and difference > 1e-4:
        raise SystemExit("the answers differ; timing them would mean nothing")


def measure(runs: dict[str, Callable[[], Answer]], options: argparse.Namespace) -> dict[str, list[Times]]:
    """Times of each repeat of each run, the runs taking turns, after one run each that is not counted."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for repeat in range(options.repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            run()  # ends with a copy to the CPU, which waits for the device
            if repeat:
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return times


def describe(options: argparse.Namespace, model: T5, trie: Trie, built: float) -> None:
    cpu = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    print(torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu, platform.machine())
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    size = f"{model.parameter_count:,} parameters"
    print(f"T5 preset {options.preset}, {size}, {options.precision}, beam {options.beam}")
    shape = f"{len(trie):,} items x {trie.length}"
    print(f"trie: {shape}, built in {built:.3f} s, {trie.nbytes / len(trie):.1f} bytes an item")


def report(batch: int, times: dict[str, list[Times]]) -> None:
    wall = {name: statistics.median(each[0] for each in values) for name, values in times.items()}
    busy = {name: statistics.median(each[1] for each in values) for name, values in times.items()}
    for name, values in times.items():
        spread = f"{min(values)[0] * 1e3:.1f} to {max(values)[0] * 1e3:.1f}"
        milliseconds = f"{wall[name] * 1e3:9.1f} ms ({spread}), processor {busy[name] * 1e3:9.1f} ms"
        print(f"batch {batch:4d}  {name:12s} {milliseconds}, {batch / wall[name]:9.1f} users/s")
    if "transformers" in times:
        ratios = [f"{each['transformers'] / each['catalex']:.1f}" for each in (wall, busy)]
        print(
            f"batch {batch:4d}  transformers / catalex: "
            f"{ratios[0]} by the clock, {ratios[1]} by processor time"
        )


if __name__ == "__main__":
    main()
