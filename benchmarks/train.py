"""Training steps of the generative recommender: catalex's packed step against a padded transformers loop.

    python benchmarks/train.py
    python benchmarks/train.py --sequences runs/beauty/prepare/beauty/interactions.parquet --batches 256
    python benchmarks/train.py --device cuda --batches 256 1024 4096 --steps 20

The peer is what most published code does: `T5ForConditionalGeneration` as installed, histories padded to
the longest of the batch, cross-entropy, clipping, AdamW. It gets the same weights, and its loss on the same
examples must equal ours (without dropout) before anything is timed. A step is everything from example
numbers to changed weights: making the batch, forward, backward, clipping, optimiser; both have dropout 0.1.
The two are timed in turn. On CUDA ours is bf16 and replayed from a CUDA graph, and the peer is timed in
float32 and under bf16 autocast.

Histories are all prefixes of real sequences if `--sequences` names a prepared domain's interactions
(Parquet) or an .npz of `items` and `offsets`; else random items whose history lengths are geometric (mean
11, cut at 20 items: about 45 % of padded batches are tokens). Operations are those that the plain network
needs for real tokens, so the fraction of the matrix peak can be compared between implementations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import SIDES, matrix_peak, wait

from catalex.data.histories import Histories
from catalex.models.t5 import PAD, T5, T5Options
from catalex.models.t5_folder import state_for_transformers
from catalex.models.t5_packed import packed_loss
from catalex.training.examples import PrefixExamples, TokenTable
from catalex.training.loop import TrainingOptions, make_step
from catalex.training.optim import adam
from catalex.training.packed_examples import PackedBatches, PackedExamples
from catalex.training.seeds import seed_torch
from catalex.types import Ints

CODES, LEVELS, HISTORY = 256, 3, 20
OPTIONS = TrainingOptions(learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)


def main() -> None:
    """Compare, then time every batch size; one JSON object a batch size."""
    o = arguments()
    torch.set_num_threads(o.threads or torch.get_num_threads())
    torch.manual_seed(0)
    histories = sequences(o.sequences)
    peak = matrix_peak(
        torch.bfloat16 if o.device != "cpu" else torch.float32, SIDES[o.device.split(":")[0]], o.device
    )
    model = T5(CODES * LEVELS + 2, T5Options(preset="tiger")).to(o.device)
    for size in o.batches:
        ours = Ours(model, histories, size, o.device)
        peers: dict[str, Peer] = {}
        if not o.without_peer:
            peers = {"transformers": Peer(model, o.device, bf16=False)}
            if o.device != "cpu":
                peers["transformers bf16"] = Peer(model, o.device, bf16=True)
            agree(ours, peers["transformers"])
        report = {"batch": size, "device": o.device, "peak_tflops": round(peak / 1e12, 3)}
        report |= timed(ours, peers, o.steps, o.device, peak)
        print(json.dumps(report), flush=True)
        if o.record is not None and peers:
            record(o.record, o.device, size, report)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="examples a step")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--sequences", type=Path, help="interactions.parquet of a prepared domain, or .npz")
    parser.add_argument("--without-peer", action="store_true", help="time catalex alone")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    return parser.parse_args()


# --- data ---------------------------------------------------------------------------------------------------


def sequences(path: Path | None) -> Histories:
    """Training sequences of a file, or synthetic ones."""
    if path is None:
        random = np.random.default_rng(0)
        lengths = np.minimum(random.geometric(1 / 11, 20_000), HISTORY) + 1
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Histories(offsets, random.integers(0, 12_000, offsets[-1]))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return Histories(arrays["offsets"].astype(np.int64), arrays["items"].astype(np.int64))
    import pyarrow.parquet as pq

    from catalex.data.columns import TRAIN

    columns = ("user_id", "item_id", "position", "split")
    table = pq.read_table(path, columns=list(columns))
    user, item, position, split = (table[name].to_numpy().astype(np.int64) for name in columns)
    order = np.lexsort((position, user))
    order = order[split[order] == TRAIN]
    counts = np.unique(user[order], return_counts=True)[1]
    return Histories(np.concatenate([[0], np.cumsum(counts)]), item[order])


def prefixes(histories: Histories, size: int, device: str, *, synthetic: bool) -> PrefixExamples:
    """All prefixes; of synthetic sequences the whole alone, whose length is what was drawn."""
    items = int(histories.items.max()) + 1
    codes = np.random.default_rng(1).integers(0, CODES, (items, LEVELS)) + 1 + CODES * np.arange(LEVELS)
    table = TokenTable([codes], CODES * LEVELS + 1, device)
    examples = PrefixExamples.build(
        table, [histories], max_history=HISTORY, batch_size=size, seed=0, temperature=1.0
    )
    if not synthetic:
        return examples
    last = np.isin(examples.targets, histories.offsets[1:] - 1)
    return PrefixExamples(
        table, examples.items, examples.starts[last], examples.targets[last], examples.domains[last],
        HISTORY, size, 0, 1.0,
    )  # fmt: skip


# --- contenders ---------------------------------------------------------------------------------------------


class Ours:
    """The packed step of `catalex.training`."""

    def __init__(self, model: T5, histories: Histories, size: int, device: str) -> None:
        self.model, self.device = model, device
        self.examples = prefixes(histories, size, device, synthetic=len(histories) == 20_000)
        self.plan: PackedBatches = PackedExamples(self.examples).plan(0)
        self.optimizer = adam(model, OPTIONS.learning_rate, OPTIONS.weight_decay, device)
        self.step = make_step(model, _loss, self.optimizer, OPTIONS, device)

    def members(self, number: int) -> Ints:
        """Numbers of the examples of a batch."""
        return self.plan.batches[number % len(self.plan)]

    def run(self, number: int) -> None:
        self.model.train()
        seed_torch(0, "step", number)
        self.step(self.plan[number % len(self.plan)])


def _loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    assert isinstance(model, T5)
    return packed_loss(model, batch)


class Peer:
    """A padded loop over transformers' T5."""

    def __init__(self, model: T5, device: str, *, bf16: bool) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        o = model.options
        config = T5Config(
            vocab_size=model.vocabulary, d_model=o.hidden, d_kv=o.head_width, d_ff=o.feed_forward,
            num_layers=o.layers, num_decoder_layers=o.layers, num_heads=o.heads, dropout_rate=o.dropout,
            feed_forward_proj="relu", tie_word_embeddings=True, decoder_start_token_id=PAD, pad_token_id=PAD,
        )  # fmt: skip
        self.model = T5ForConditionalGeneration(config).to(device)
        state = {name: torch.from_numpy(value) for name, value in state_for_transformers(model).items()}
        missing = self.model.load_state_dict(state, strict=False).missing_keys
        assert all("embed_tokens" in name or "lm_head" in name for name in missing), missing
        self.device, self.bf16 = device, bf16
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=OPTIONS.learning_rate, weight_decay=OPTIONS.weight_decay
        )

    def batch(self, examples: PrefixExamples, members: Ints) -> dict[str, torch.Tensor]:
        """Histories padded to the longest, written by NumPy and copied to the device."""
        table = self.tokens(examples)
        items = self.items(examples)
        starts, targets = examples.starts[members], examples.targets[members]
        lengths = targets - starts
        slots = np.arange(lengths.max())
        inside = slots < lengths[:, None]
        picked = items[np.where(inside, starts[:, None] + slots, 0)]
        text = np.where(inside[:, :, None], table[picked], PAD).reshape(len(members), -1)
        text = np.pad(text, ((0, 0), (0, 1)), constant_values=PAD)
        np.put_along_axis(text, (lengths * LEVELS)[:, None], examples.table.eos, axis=1)
        labels = np.pad(table[items[targets]], ((0, 0), (0, 1)), constant_values=examples.table.eos)
        tokens = torch.from_numpy(text).to(self.device)
        return {
            "input_ids": tokens,
            "attention_mask": (tokens != PAD).long(),
            "labels": torch.from_numpy(labels).to(self.device),
        }

    def tokens(self, examples: PrefixExamples) -> Ints:
        if not hasattr(self, "_tokens"):
            self._tokens, self._items = examples.table.tokens.cpu().numpy(), examples.items.cpu().numpy()
        return self._tokens

    def items(self, examples: PrefixExamples) -> Ints:
        return self._items

    def train(self, ours: Ours, number: int) -> None:
        """One step on the batch that ours has under that number."""
        self.model.train()
        batch = self.batch(ours.examples, ours.members(number))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIONS.clip_norm or 1.0)
        self.optimizer.step()


def agree(ours: Ours, peer: Peer) -> None:
    """Stop unless both give the same loss for one batch in float32 without dropout."""
    ours.model.eval()
    peer.model.eval()
    with torch.no_grad():
        mine = float(packed_loss(ours.model, ours.plan[0]))
        theirs = float(peer.model(**peer.batch(ours.examples, ours.members(0))).loss)
    if abs(mine - theirs) > 1e-4 * abs(theirs):
        raise SystemExit(f"the losses differ: ours {mine}, transformers {theirs}")


# --- measuring ----------------------------------------------------------------------------------------------


def timed(ours: Ours, peers: dict[str, Peer], steps: int, device: str, peak: float) -> dict[str, Any]:
    """Examples a second of everyone, in turn, and what the numbers are of."""
    runs: dict[str, Callable[[int], None]] = {"catalex": ours.run}
    for name, peer in peers.items():
        runs[name] = partial(peer.train, ours)
    warm_up = 1 if device == "cpu" else 24
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    numbers = list(range(1, warm_up + steps + 1))
    for name, run in runs.items():
        for number in numbers[:warm_up] if name == "catalex" else numbers[: min(warm_up, 2)]:
            run(number)
    burst = 1 if device == "cpu" else 10  # a GPU is fed ahead of its work, as in training
    for number in numbers[warm_up:]:
        for name, run in runs.items():
            wait(device)
            began = time.perf_counter(), time.process_time()
            for turn in range(burst if name == "catalex" else 1):
                run(number + turn)
            wait(device)
            each = burst if name == "catalex" else 1
            seconds[name].append((time.perf_counter() - began[0]) / each)
            processor[name].append((time.process_time() - began[1]) / each)
    size = len(ours.members(0))
    lengths = [(ours.examples.targets - ours.examples.starts)[ours.members(n)] * LEVELS + 1 for n in numbers]
    real = statistics.mean(each.sum() for each in lengths)
    padded = statistics.mean(each.max() * len(each) for each in lengths)
    packed = statistics.mean(ours.plan[n % len(ours.plan)]["tokens"].numel() for n in numbers[:3])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    began = time.perf_counter()
    for number in numbers[:3]:
        ours.plan._prepared(number % len(ours.plan))
    host = (time.perf_counter() - began) / 3
    found: dict[str, Any] = {
        "examples_per_second": {name: round(size / value) for name, value in median.items()},
        "milliseconds_per_step": {name: round(value * 1e3, 3) for name, value in median.items()},
        "milliseconds_to_pack": round(host * 1e3, 3),
        "tokens_per_example": round(real / size, 2),
        "real_share_padded": round(real / padded, 3),
        "real_share_packed": round(real / packed, 3),
        "fraction_of_peak": round(
            statistics.mean(operations(ours.model.options, each) for each in lengths)
            / median["catalex"] / peak, 4
        ),
    }  # fmt: skip
    for name in peers:
        by_processor = statistics.median(processor[name]) / statistics.median(processor["catalex"])
        found[f"ratio to {name}"] = round(median[name] / median["catalex"], 2)
        if device == "cpu":
            found[f"ratio to {name}, processor time"] = round(by_processor, 2)
    return found


def operations(o: T5Options, lengths: Ints) -> float:
    """Of one step of the plain network on real tokens: 2 a weight and token there, twice that back."""
    inner = o.heads * o.head_width
    tokens, squares = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    positions = (LEVELS + 1) * len(lengths)
    encoder = o.layers * (
        tokens * (4 * o.hidden * inner + 2 * o.hidden * o.feed_forward) + 2 * inner * squares
    )
    memory = o.layers * tokens * 2 * o.hidden * inner
    decoder = o.layers * positions * (6 * o.hidden * inner + 2 * o.hidden * o.feed_forward)
    decoder += o.layers * 2 * inner * (positions * (LEVELS + 1) + (LEVELS + 1) * tokens)
    head = positions * o.hidden * (CODES * LEVELS + 2)
    return 6 * (encoder + memory + decoder + head)


def record(ledger: Path, device: str, size: int, report: dict[str, Any]) -> None:
    """One line a peer for the benchmark ledger."""
    from catalex.reporting.ledger import BenchmarkLine, append

    for name, value in report["examples_per_second"].items():
        if name == "catalex":
            continue
        mine = report["examples_per_second"]["catalex"]
        values = {
            "name": f"train/{device.split(':')[0]}-batch-{size}-against-{name.replace(' ', '-')}",
            "value": mine,
            "unit": "examples/s",
            "baseline": f"padded {name} loop",
            "baseline_value": value,
            "ratio": round(mine / value, 2),
        }
        append(ledger, BenchmarkLine.parse(values, "train"))


if __name__ == "__main__":
    main()
