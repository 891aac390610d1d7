"""Arithmetic of one training step of UTGRec, counted from the shapes of its matrices.

A multiplication and an addition are two operations. A matrix of P weights costs 2 P a row in the forward
pass, 2 P for the gradient of its inputs and 2 P for its own: 6 P where it is trained, 4 P where it is frozen
but something before it learns (LoRA), 2 P where nothing before it learns (the vision tower). Attention of
width d over T tokens costs 4 T^2 d a sequence and layer forward and twice that backward; all T^2 products
count, since masks are given and not skipped. Not counted: norms, softmax, look-ups, the optimizer, and what
gradient checkpointing computes a second time: the result is the work that the method asks for.

Letters: B items of a step, S sequences that the encoder reads (an item and its positive: 2 B), T tokens of a
sequence, L codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from catalex.features.trainable.base import Batch, TrainableEncoder
from catalex.models.content_decoders import MaskedReader, TextDecoder, VisualDecoder
from catalex.models.diffusion_schedule import STEPS
from catalex.tokenizers.utgrec_network import Step, Targets, UTGRecNetwork


@dataclass(frozen=True)
class Work:
    """Floating-point operations of some rows."""

    forward: float
    training: float
    """Forward and backward."""

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.training + other.training)

    def times(self, count: float) -> Work:
        return Work(self.forward * count, self.training * count)


NOTHING = Work(0.0, 0.0)


def matrices(module: nn.Module, learns_before: bool = True) -> Work:
    """All linear maps of `module` on one row each."""
    found = NOTHING
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            weights = part.weight.numel()
            backward = 2 * learns_before + 2 * part.weight.requires_grad
            found += Work(2.0 * weights, (2.0 + backward) * weights)
    return found


def attention(layers: int, tokens: float, width: int, learns: bool = True) -> Work:
    """Scores and mixtures of one sequence; every layer holds width = heads x head width."""
    forward = 4.0 * layers * tokens**2 * width
    return Work(forward, forward * (3 if learns else 1))


def encoder_work(encoder: TrainableEncoder, content: Batch) -> dict[str, Work]:
    """What the encoder does with `content`, S sequences of equal length."""
    made: Any = encoder
    if hasattr(made, "transformer"):  # mini
        sequences, tokens = len(content["tokens"]), sequence_length(encoder, content)
        config = made.transformer.config
        work = matrices(made.transformer).times(tokens)
        work += attention(config.num_hidden_layers, tokens, config.hidden_size)
        if made.image_projection is not None:
            work += matrices(made.image_projection, False).times(made.image_tokens)
        return {"encoder": work.times(sequences)}
    tower = made.tower if hasattr(made, "tower") else made.model.language_model
    sequences, tokens = content["ids"].shape
    work = matrices(tower).times(tokens)
    work += attention(tower.config.num_hidden_layers, tokens, tower.config.hidden_size)
    found = {"encoder": work.times(sequences)}
    if getattr(made, "eyes", None) is not None:  # smolvl
        found["encoder"] += matrices(made.eyes).times(sequences * content["images"].shape[1])
    if "grids" in content:
        found["vision tower"] = vision_work(made.model.visual, content)
    return found


def sequence_length(encoder: TrainableEncoder, content: Batch) -> int:
    """T, image and code tokens included."""
    made: Any = encoder
    if "ids" in content:
        return content["ids"].shape[1]
    return int(content["tokens"].shape[1] + made.image_tokens + made.levels)


def vision_work(tower: Any, content: Batch) -> Work:
    """Qwen2-VL's vision tower on the images of a batch; attention stays within an image."""
    config = tower.config
    learns = any(weight.requires_grad for weight in tower.parameters())
    patches = content["grids"].prod(1).tolist()
    work = (matrices(tower.patch_embed, False) + matrices(tower.blocks, learns)).times(sum(patches))
    work += matrices(tower.merger, learns).times(sum(patches) / config.spatial_merge_size**2)
    for count in patches:
        work += attention(config.depth, count, config.embed_dim, learns)
    return work


def step_work(network: UTGRecNetwork, step: Step) -> dict[str, Work]:
    """A whole training step by its parts."""
    items, sequences = len(step.rows), _sequences(step.content)
    levels = network.options.levels
    found = encoder_work(network.encoder, step.content)
    found["projection"] = matrices(network.project).times(sequences * levels)
    if network.shortcut is not None:
        found["projection"] += matrices(network.shortcut, False).times(sequences)
    found["projection"] += matrices(network.lift).times(items * levels)
    found["codebooks"] = codebook_work(network, items)
    for targets in (step.own, step.positive):
        if targets is not None:
            for name, work in _decoders(network, targets, levels).items():
                found[name] = found.get(name, NOTHING) + work
    return found


def codebook_work(network: UTGRecNetwork, items: int) -> Work:
    """The products C W, once a step, and distances to all codes, which have no gradient."""
    books = network.codebooks
    found = NOTHING
    for book in {id(each): each for each in map(books.book, range(books.levels))}.values():
        if book.projection is not None:
            product = 2.0 * book.base.numel() * books.width
            found += Work(product, 3 * product)
    distances = 2.0 * items * sum(books.sizes) * books.width
    return found + Work(distances, distances)


def _sequences(content: Batch) -> int:
    return len(content["tokens" if "tokens" in content else "ids"])


def _decoders(network: UTGRecNetwork, targets: Targets, levels: int) -> dict[str, Work]:
    """Reconstructing one side, items or positives."""
    found: dict[str, Work] = {}
    if network.text is not None and targets.tokens is not None:
        items, length = targets.tokens.shape
        found["text decoder"] = _text(network.text, length, levels).times(items)
    if network.vector is not None and targets.vectors is not None:
        found["vector decoder"] = matrices(network.vector).times(len(targets.vectors))
    if network.image is not None and targets.latents is not None:
        found["visual decoder"] = _visual(network.image, len(targets.latents), levels)
    return found


def _text(decoder: TextDecoder, length: int, levels: int) -> Work:
    table = 2.0 * decoder.table.numel()
    head = Work(table, 3 * table) + matrices(decoder.adapt)
    return _reader(decoder.reader, levels + length) + head.times(length)


def _visual(decoder: VisualDecoder, items: int, levels: int) -> Work:
    """Block and denoiser; each token is denoised `repeats` times under one condition."""
    tokens = items * decoder.tokens
    work = _reader(decoder.reader, levels + decoder.tokens).times(items)
    if decoder.regress is not None:
        return work + matrices(decoder.regress).times(tokens)
    assert decoder.diffusion is not None
    denoiser = decoder.diffusion.denoiser
    rows = tokens * decoder.diffusion.repeats
    work += matrices(denoiser.condition).times(tokens)
    work += matrices(denoiser.time).times(min(rows, STEPS))  # each step of the schedule once
    every_row = matrices(denoiser.enter, False)
    for part in (denoiser.blocks, denoiser.modulate, denoiser.leave):
        every_row += matrices(part)
    return work + every_row.times(rows)


def _reader(reader: MaskedReader, tokens: int) -> Work:
    shape = reader.block.shape
    return matrices(reader.block).times(tokens) + attention(1, tokens, shape.heads * shape.head_width)
