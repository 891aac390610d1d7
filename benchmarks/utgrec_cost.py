"""Cost of UTGRec: items a second in training and in tokenizing, memory, and the share of the matrix peak.

    python benchmarks/utgrec_cost.py --encoder mini
    python benchmarks/utgrec_cost.py --encoder smolvl --images 1 --batch 4 --threads 1
    python benchmarks/utgrec_cost.py --encoder qwen2-vl --images 1 --batch 16    # the paper's, random weights
    python benchmarks/utgrec_cost.py --encoder qwen2-vl --images 1 --tiny        # does it run?

A training step is what the trainer does: make the batch, encode B items and their B positives, all losses
(text and, with --images, a diffusion loss on latents of 256 x 16, each for the item and for its positive),
backward, clipping, AdamW. Tokenizing is `project_rows` and the nearest codes, 64 items at a time. Both are
compared with the bare encoder: the plain transformers model, frozen, forward only, without code tokens, in
bf16. The matrix peak is a large product of two random matrices, measured in the same run in bf16 and float32;
the faster one counts. How operations are counted stands in `_utgrec_flops.py`. Every time is the median of
--steps after a warm-up, and the device is waited for after each. On a CPU the share of the peak compares
processor times, which depend less on what else the machine is doing, and memory is that of the whole process.

With --images the encoders mini and smolvl read drawn features, qwen2-vl pictures of --image-side pixels (28 x
28 of them a token). Weights are those of the packages or of --folder; for cost alone, --random-weights builds
the same sizes without any file.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import SIDES, Measured, matrix_peak, measure
from _utgrec_flops import codebook_work, encoder_work, matrices, sequence_length, step_work
from _utgrec_workload import bare_encoder, encoder_settings, make_material, make_network
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from catalex.features.trainable.base import TrainableEncoder
from catalex.reporting.ledger import BenchmarkLine, append, machine_name
from catalex.tokenizers.utgrec_network import Step, UTGRecNetwork
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.tokenizers.utgrec_training import ROWS, Material, _backward, _step, project_rows
from catalex.training.optim import adam
from catalex.types import Ints

ENCODERS = ("mini", "smolvl", "qwen2-vl")
BATCHES = {
    "cpu": {"mini": 16, "smolvl": 4, "qwen2-vl": 1},
    "cuda": {"mini": 256, "smolvl": 64, "qwen2-vl": 16},
}
"""Items of a step by default. The paper has 16 a GPU."""
PAPER_ITEMS, PAPER_EPOCHS, PAPER_GPUS = 344_412, 3, 16
"""Pre-training of UTGRec (arXiv 2504.04405, table 1 and section 3.1.4)."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BARE = "bare encoder, forward only, bf16"


def main(given: list[str] | None = None) -> None:
    a = arguments(given)
    disable_progress_bar()
    device = a.device if a.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if a.threads:
        torch.set_num_threads(a.threads)
    kind = device.split(":")[0]
    a.batch = a.batch or BATCHES[kind][a.encoder]
    print(f"{machine_name()}; {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    peaks = {name: matrix_peak(dtype, a.side or SIDES[kind], device) for name, dtype in DTYPES.items()}
    for name, peak in peaks.items():
        print(f"matrix peak {name:5s} {peak / 1e12:9.3f} TFLOP/s")
    with tempfile.TemporaryDirectory() as scratch:
        options = UTGRecOptions.parse(
            {
                "preset": "utgrec-paper" if a.encoder == "qwen2-vl" else "utgrec",
                "encoder": encoder_settings(a, Path(scratch)),
                "precision": a.precision,
                "batch": a.batch,
            },
            "benchmark",
        )
        network = make_network(a, options, device)
        material = make_material(a, network.encoder, max(4 * a.batch, 2 * ROWS))
        # ascending by memory: on a CPU only the peak of the process so far is known
        found = {"tokenize": measure(tokenizing(network, material, device), ROWS, a.steps, device)}
        found["tokenize"].parts = tokenizing_parts(network, material)
        frozen = [DTYPES["bf16"]]
        if all(weight.dtype == torch.float32 for weight in network.encoder.parameters()):
            frozen.append(DTYPES["fp32"])  # what tokenizing computes in
        bare = [measure_bare(network.encoder, material, dtype, a.steps, device) for dtype in frozen]
        found["train"] = train(network, material, a, device)
        longest = sequence_length(network.encoder, material.index.batch(block(0, material)))
    names = BARE, BARE.replace("bf16", "fp32")
    report(a, network, found, dict(zip(names, bare, strict=False)), longest, device)
    compare_with_peak(found, max(peaks.values()), device)
    extrapolate(a, network, found)
    if a.record is not None:
        for line in ledger_lines(a, network, found, bare[0], max(peaks.values()), device):
            append(a.record, line)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="mini", choices=ENCODERS)
    parser.add_argument("--folder", help="weights in the format of transformers; default: the package's")
    parser.add_argument("--random-weights", action="store_true", help="build mini or smolvl without any file")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to try the script")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of training")
    parser.add_argument("--checkpointing", choices=["yes", "no"], help="of gradients; default: the encoder's")
    parser.add_argument("--batch", type=int, help="B; halved, and said so, when memory does not suffice")
    parser.add_argument(
        "--text-tokens", type=int, default=64, help="T of every text; the prompt comes on top"
    )
    parser.add_argument("--images", type=float, default=0.0, help="share of the items that have an image")
    parser.add_argument("--image-side", type=int, default=448, help="pixels; read by qwen2-vl alone")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, help="of the matrices of the peak")
    parser.add_argument(
        "--bus",
        type=float,
        default=300.0,
        help="GB/s of an all-reduce between eight GPUs, assumed (NCCL's busbw)",
    )
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    a = parser.parse_args(given)
    for name in ("steps", "text_tokens"):
        if getattr(a, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is at least 1")
    if not 0 <= a.images <= 1:
        parser.error("--images is a share, 0 to 1")
    return a


def tokenizing(network: UTGRecNetwork, material: Material, device: str) -> Callable[[int], Any]:
    """One block of items to codes."""

    def run(number: int) -> torch.Tensor:
        projected = project_rows(network, material.index, material.vectors, block(number, material), device)
        return network.codebooks.encode(projected.to(device)).cpu()

    return run


def block(number: int, material: Material) -> Ints:
    return (np.arange(ROWS) + number * ROWS) % len(material.index)


def tokenizing_parts(network: UTGRecNetwork, material: Material) -> dict[str, float]:
    work = encoder_work(network.encoder, material.index.batch(block(0, material)))
    work["projection"] = matrices(network.project).times(ROWS * network.options.levels)
    if network.shortcut is not None:
        work["projection"] += matrices(network.shortcut).times(ROWS)
    work["codebooks"] = codebook_work(network, ROWS)
    return {part: each.forward for part, each in work.items()}


def measure_bare(
    encoder: TrainableEncoder, material: Material, dtype: torch.dtype, steps: int, device: str
) -> Measured:
    """The bare encoder on the blocks that are tokenized."""
    model = bare_encoder(encoder, dtype, device)

    def run(number: int) -> torch.Tensor:
        content = material.index.batch(block(number, material))
        return model({key: value.to(device) for key, value in content.items()}).cpu()

    return measure(run, ROWS, steps, device)


# --- training -----------------------------------------------------------------------------------------------


def train(network: UTGRecNetwork, material: Material, a: argparse.Namespace, device: str) -> Measured:
    """Steps of `a.batch` items, or of half as many as often as memory does not suffice."""
    while True:
        try:
            return _train(network, material, a, device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or a.batch == 1:
                raise
        network.zero_grad(set_to_none=True)
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
        a.batch //= 2
        print(f"out of memory: going on with half the batch, {a.batch} items")


def out_of_memory(error: Exception) -> bool:
    """Torch has a type of its own for GPUs only."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _train(network: UTGRecNetwork, material: Material, a: argparse.Namespace, device: str) -> Measured:
    o = network.options
    processes = PartialState(cpu=device == "cpu")
    optimizer = adam(network, o.learning_rate, o.weight_decay, device)
    order = np.random.default_rng(1)
    drawn: list[Ints] = []
    making: list[float] = []
    loss = [torch.zeros(())]
    network.train()

    def make(number: int) -> Step:
        return _step(network, material, drawn[number], 0, number, device, processes)

    def run(number: int) -> None:
        drawn.append(order.permutation(len(material.index))[: a.batch])
        began = time.perf_counter()
        step = make(number)
        making.append(time.perf_counter() - began)
        loss[0] = _backward(network, step, True, device).total.detach()
        torch.nn.utils.clip_grad_norm_(network.parameters(), o.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found = measure(run, a.batch, a.steps, device)
    if not torch.isfinite(loss[0]):
        raise SystemExit("the loss is not a number; timing this would mean nothing")
    found.making = making[-a.steps :]
    for number in range(len(drawn) - a.steps, len(drawn)):  # made again, as counting takes time as well
        for part, work in step_work(network, make(number)).items():
            found.parts[part] = found.parts.get(part, 0.0) + work.training / a.steps
    return found


def gradient_bytes(network: UTGRecNetwork) -> int:
    """What processes exchange in every step."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def paper_hours(seconds: float, batch: int, gpus: int, gradients: int, bus: float) -> float:
    """Hours of the paper's pre-training on `gpus` GPUs.

    Each GPU takes steps of `batch` items in `seconds`, as one alone does; then gradients are averaged over a
    ring, ``2 (g - 1) / g`` of their bytes at `bus` bytes a second, while nothing else happens.
    """
    steps = PAPER_ITEMS * PAPER_EPOCHS / (batch * gpus)
    return steps * (seconds + 2 * (gpus - 1) / gpus * gradients / bus) / 3600


# --- report -------------------------------------------------------------------------------------------------


def report(
    a: argparse.Namespace,
    network: UTGRecNetwork,
    found: dict[str, Measured],
    bare: dict[str, Measured],
    longest: int,
    device: str,
) -> None:
    every = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    print(f"{a.encoder}: {every / 1e6:.1f} M parameters with decoders, {trained / 1e6:.1f} M of them trained")
    print(
        f"{a.text_tokens} text tokens, {longest} in the encoder with all around them, "
        f"images on {a.images:.0%} of the items, batch {a.batch}"
    )
    for name, one in {**bare, **found}.items():
        times = [f"{each * 1e3:.1f}" for each in (one.second, min(one.seconds), max(one.seconds))]
        spread = f"{times[0]:>9s} ms ({times[1]} to {times[2]}) for {one.items} items"
        print(f"{name:34s} {one.rate:10.2f} items/s, {spread}")
        if device == "cpu":
            print(f"{'by processor time':>34s} {one.rate_by_processor:10.2f} items/s")
    for name, one in found.items():
        print(f"{name}: peak memory {one.peak_gib:.2f} GiB")
        for what, plain in bare.items():
            print(f"{name}: {plain.rate / one.rate:.2f} times as long an item as {what}")
    making = statistics.median(found["train"].making) / found["train"].second
    print(f"of a training step {making:.1%} is making the batch")


def compare_with_peak(found: dict[str, Measured], peak: float, device: str) -> None:
    """Operations of an item by parts of the network, and how many a second."""
    for name, one in found.items():
        for part, operations in one.parts.items():
            print(f"{name}: {part:15s} {operations / one.items / 1e9:9.2f} GFLOP an item")
        speed = one.speed(device)
        print(f"{name}: {speed / 1e12:.3f} TFLOP/s, {speed / peak:.1%} of the matrix peak")


def extrapolate(a: argparse.Namespace, network: UTGRecNetwork, found: dict[str, Measured]) -> None:
    """The paper's pre-training on devices like this one."""
    gradients = gradient_bytes(network)
    one, eight = (hours(a, found["train"], gradients, gpus) for gpus in (1, 8))
    paper = f"{PAPER_ITEMS:,} items, {PAPER_EPOCHS} epochs (there {PAPER_GPUS} GPUs of 16 items)"
    averaging = f"{gradients / 1e9:.2f} GB of gradients averaged at {a.bus:g} GB/s"
    print(f"the paper's pre-training, {paper}, at {a.batch} items a device: {one:.2f} h on one like this,")
    print(f"  {eight:.2f} h on eight, if their steps take as long and are followed by {averaging}")
    print(f"tokenizing these items: {PAPER_ITEMS / found['tokenize'].rate / 3600:.2f} h on one like this")


def hours(a: argparse.Namespace, train: Measured, gradients: int, gpus: int) -> float:
    return paper_hours(train.second, a.batch, gpus, gradients, a.bus * 1e9)


def ledger_lines(
    a: argparse.Namespace,
    network: UTGRecNetwork,
    found: dict[str, Measured],
    bare: Measured,
    peak: float,
    device: str,
) -> list[BenchmarkLine]:
    """Rates beside the bare encoder's, speeds beside the matrix peak, memory, hours on one and eight."""
    about = f"utgrec-cost/{'tiny-' if a.tiny else ''}{a.encoder}-{device.split(':')[0]}"
    about += f"-{a.text_tokens}-tokens{f'-{a.images:.0%}-images' if a.images else ''}-batch-{a.batch}"

    def line(
        name: str, unit: str, value: float, beside: str | None = None, other: float = 1.0
    ) -> BenchmarkLine:
        values: dict[str, Any] = {"name": f"{about}-{name}", "unit": unit, "value": float(f"{value:.4g}")}
        if beside is not None:
            values |= {"baseline": beside, "baseline_value": float(f"{other:.4g}")}
            values["ratio"] = float(f"{value / other:.3g}")
        return BenchmarkLine.parse(values, "utgrec cost")

    lines = []
    for name, one in found.items():
        lines.append(line(f"{name}-items", "items/s", one.rate, BARE, bare.rate))
        if device == "cpu":
            rates = one.rate_by_processor, bare.rate_by_processor
            lines.append(line(f"{name}-items-by-processor", "items/s", rates[0], BARE, rates[1]))
        lines.append(line(f"{name}-memory", "GiB", one.peak_gib))
        speed = one.speed(device) / 1e12
        lines.append(line(f"{name}-speed", "TFLOP/s", speed, "matrix peak", peak / 1e12))
    gradients = gradient_bytes(network)
    for gpus in (1, 8):
        value = hours(a, found["train"], gradients, gpus)
        lines.append(line(f"paper-pretraining-on-{gpus}", "h, extrapolated", value))
    return lines


if __name__ == "__main__":
    main()
