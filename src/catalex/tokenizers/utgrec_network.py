"""The network of UTGRec: encoder, projection, tree-structured codebooks, decoders and the objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from catalex.errors import user_error
from catalex.features.latents import ImageTarget
from catalex.features.trainable.base import Batch, TrainableEncoder
from catalex.models.bidirectional import BlockShape
from catalex.models.content_decoders import LossSum, TextDecoder, VectorDecoder, VisualDecoder
from catalex.quantize.tree import TreeCodebooks
from catalex.tokenizers.alignment import alignment_loss
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.training.distributed import global_mean

TEXT_STEP = 16
"""Target texts are padded to a multiple of this, so that there are few shapes."""


class LatentShape(NamedTuple):
    """What the visual decoder has to know of an image target."""

    tokens: int
    """N_v."""
    channels: int
    """C."""


class Losses(NamedTuple):
    """The objective, eq. 13, and its parts before weighting; scalars ``()`` float32, means over all
    processes."""

    total: Tensor
    text: Tensor
    """L_t of eq. 8; 0 for an encoder that knows no words."""
    image: Tensor
    """L_v of eq. 9; 0 without a visual decoder."""
    vector: Tensor
    """Ours: 1 - cosine of the frozen content vector and the one decoded from the codes."""
    code: Tensor
    """L_code of eq. 5; 0 during the quantizer's warm-up."""
    alignment: Tensor
    """L_ali of eq. 11."""
    cooccurrence: Tensor
    """L_rec+ of eq. 12."""


@dataclass(frozen=True)
class Targets:
    """What the decoders reconstruct for B items; None where there is no such decoder.

    Attributes:
        tokens: ``(B, T)`` int64 words.
        keep: ``(B, T)`` bool, which of them are real.
        places: ``(R,)`` int64, where `keep` holds, counted along B x T.
        pictured: ``(P,)`` places of the items that have an image; the visual decoder runs for these alone.
        Where
            none has one, the first item stands for them, since attention over no rows fails on CUDA.
        latents: ``(P, N_v, C)`` their image latents.
        present: ``(P,)`` float, 0 for that item.
        vectors: ``(B, D)`` content vectors.
    """

    tokens: Tensor | None = None
    keep: Tensor | None = None
    places: Tensor | None = None
    pictured: Tensor | None = None
    latents: Tensor | None = None
    present: Tensor | None = None
    vectors: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """The inputs of one step of one process.

    Attributes:
        content: What the encoder reads: B items, and behind them their B positives where they are aligned.
        rows: ``(B,)`` numbers of the items.
        positive_rows: ``(B,)`` numbers of their positives.
        own: Targets of the items.
        positive: Targets of their positives; None where they are not reconstructed.
        frozen: Frozen content vectors ``(.., D)`` of what the encoder reads; None without a shortcut.
    """

    content: Batch
    rows: Tensor
    positive_rows: Tensor
    own: Targets
    positive: Targets | None
    frozen: Tensor | None = None


class UTGRecNetwork(nn.Module):
    """Everything that is trained. Build it under a seed; the encoder comes with its own weights."""

    def __init__(
        self,
        encoder: TrainableEncoder,
        options: UTGRecOptions,
        *,
        seed: int,
        latents: ImageTarget | LatentShape | None = None,
        vectors_width: int | None = None,
    ) -> None:
        super().__init__()
        o = self.options = options
        self.encoder = encoder
        width, decoder_width = encoder.width, o.decoder_width or encoder.width
        self.project = _projection(width, o)
        self.codebooks = TreeCodebooks(
            o.levels, o.root, o.leaf_size, o.code_width, seed=seed, beta=o.beta, share_leaf=o.share_leaf,
            projected=o.projected, residual=o.residual,
        )  # fmt: skip
        self.lift = nn.Linear(o.code_width, decoder_width)
        shape = BlockShape.for_width(decoder_width)
        words = encoder.vocabulary
        self.text: TextDecoder | None = None
        self.vector: VectorDecoder | None = None
        self.image: VisualDecoder | None = None
        if words is not None:
            if words.shape[1] != decoder_width:
                raise user_error(
                    "the text decoder starts from the encoder's words, so it has the encoder's width",
                    place="tokenizer.decoder_width",
                    value=decoder_width,
                    allowed=str(words.shape[1]),
                )
            self.text = TextDecoder(shape, words, tokens_max=_longest_text(encoder), seed=seed)
        if vectors_width is not None and o.vector_weight > 0:
            self.vector = VectorDecoder(o.code_width, vectors_width, seed=seed)
        if words is None and self.vector is None and (latents is None or o.image_weight == 0):
            raise user_error(
                "this encoder knows no words, so that nothing is left to be reconstructed",
                place="tokenizer.vector_weight",
                value=o.vector_weight,
                allowed="more than 0",
                remedy="raise it, or choose another encoder",
            )
        self.shortcut: nn.Linear | None = None
        if vectors_width is not None and o.shortcut:
            self.shortcut = nn.Linear(vectors_width, o.levels * o.code_width)
            self.begin_correction()
        if latents is not None and o.image_weight > 0:
            self.image = VisualDecoder(
                shape, tokens=latents.tokens, channels=latents.channels, loss=o.image_loss, seed=seed
            )

    def decoders(self) -> list[nn.Parameter]:
        """Parameters that begin at random whatever the options: of the text and visual decoders and the map
        before them."""
        parts = [part for part in (self.lift, self.text, self.image) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()]

    def hidden(self, content: Batch) -> Tensor:
        """H: ``(B, L, d)``."""
        found: Tensor = self.encoder(content)
        return found

    def projected(self, hidden: Tensor, frozen: Tensor | None = None) -> Tensor:
        """H': ``(B, L, d_c)`` float32, from H ``(B, L, d)`` and, with a shortcut, content vectors ``(B,
        D)``."""
        found: Tensor = self.project(hidden)
        if self.shortcut is None:
            return found.float()
        assert frozen is not None
        with torch.autocast(frozen.device.type, enabled=False):
            # what each level adds to the one before, so that a demand on the last reaches them all
            direct = self.shortcut(frozen.float()).unflatten(1, (self.options.levels, -1)).cumsum(1)
        joined: Tensor = found.float() + direct
        return joined

    @torch.no_grad()
    def begin_correction(self) -> None:
        """Let the encoder's part of H' be zero, a correction of nothing to what the shortcut knows."""
        last = self.project[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @torch.no_grad()
    def begin_at_principal_components(self, vectors: Tensor) -> None:
        """Let the shortcut map content vectors ``(N, D)`` so that the prefix residual of level l is the l-th
        block of their principal components: the first code sees the coarsest differences between items, each
        further one the next finer. The vector decoder starts at the way back."""
        if self.shortcut is None:
            return
        levels, width = self.options.levels, self.options.code_width
        x = vectors.double()
        mean = x.mean(0)
        _, axes = torch.linalg.eigh((x - mean).T @ (x - mean))
        count = min(width, self.options.components)
        axes = axes.flip(1)[:, :count].float()  # (D, at most d_c), largest variance first
        # a sign of its own for each axis, or the result would depend on the library
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        weight = torch.zeros(levels, width, x.shape[1])
        for level, block in enumerate(torch.tensor_split(torch.arange(axes.shape[1]), levels)):
            weight[level, block] = axes.T[block]
        self.shortcut.weight.copy_(weight.flatten(0, 1))
        self.shortcut.bias.copy_(-(weight.flatten(0, 1) @ mean.float()))
        if self.vector is not None:  # or the codes would lose what nobody can read yet
            rebuild = torch.zeros_like(self.vector.map.weight)
            rebuild[:, : axes.shape[1]] = axes
            self.vector.map.weight.copy_(rebuild)
            self.vector.map.bias.copy_(mean.float())

    def forward(self, step: Step, quantize: bool) -> Losses:
        """The objective, eq. 13. Without `quantize` the decoders read H' and the codebooks rest (warm-up)."""
        o, items = self.options, len(step.rows)
        hidden = self.hidden(step.content)
        every = self.projected(hidden, step.frozen)
        ours = every[:items]
        zero = every.new_zeros(())
        code = zero
        restored = ours
        if quantize:
            quantized = self.codebooks(ours)
            code = global_mean(
                self.codebooks.codebook_loss(quantized.losses, o.reduction) * items, zero + items
            )
            restored = quantized.restored
        lifted = self.lift(restored)
        text, image, vector = self._reconstruct(lifted, restored, step.own)
        alignment, cooccurrence = zero, zero
        if o.alignment_weight > 0:
            aligned = every if o.align_on == "projected" else hidden
            alignment = alignment_loss(
                aligned[:items], aligned[items:], step.rows, step.positive_rows, temperature=o.temperature
            )
        if step.positive is not None:
            other = self._reconstruct(lifted, restored, step.positive)
            cooccurrence = (
                o.content_weight * (other[0] + o.image_weight * other[1]) + o.vector_weight * other[2]
            )
        total = (
            o.content_weight * (text + o.image_weight * image)
            + o.vector_weight * vector
            + o.code_weight * code
            + o.alignment_weight * alignment
            + o.cooccurrence_weight * cooccurrence
        )
        return Losses(total, text, image, vector, code, alignment, cooccurrence)

    def _reconstruct(
        self, lifted: Tensor, restored: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text, image and vector loss of targets, from ``(B, L, d_dec)`` and, the last, ``(B, L, d_c)``."""
        text = image = vector = lifted.new_zeros((), dtype=torch.float32)
        if self.text is not None and targets.tokens is not None and targets.keep is not None:
            text = _mean(self.text(lifted, targets.tokens, targets.keep, targets.places))
        if self.vector is not None and targets.vectors is not None:
            vector = _mean(self.vector(restored, targets.vectors, restored.new_ones(len(restored))))
        if self.image is not None and targets.latents is not None:
            assert targets.pictured is not None
            assert targets.present is not None
            pictured = lifted[targets.pictured]
            image = _mean(self.image(pictured, targets.latents, targets.present))
        return text, image, vector

    def trained(self) -> dict[str, Tensor]:
        """Everything that has to be stored: all weights but those that the encoder can find again by
        itself."""
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        return {**own, **{f"encoder.{name}": value for name, value in self.encoder.saved().items()}}

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Take what `trained` gave.

        Raises:
            CatalexError: When a tensor is missing, unknown or of another shape.
        """
        encoder = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
        self.encoder.restore(encoder)
        rest = {k: v for k, v in weights.items() if not k.startswith("encoder.")}
        own = {k: v.shape for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        wrong = sorted(k for k in own.keys() | rest.keys() if k not in rest or own.get(k) != rest[k].shape)
        if wrong:
            raise user_error(
                "the weights do not fit the configuration of the tokenizer",
                place="tokenizer",
                value=wrong[0],
                remedy="copy the folder again, or train the tokenizer anew",
            )
        self.load_state_dict(rest, strict=False)


def _projection(width: int, o: UTGRecOptions) -> nn.Sequential:
    """d to d_c, applied to each level's vector alike."""
    if o.projection_hidden is None:
        return nn.Sequential(nn.Dropout(o.dropout), nn.Linear(width, o.code_width))
    return nn.Sequential(
        nn.Dropout(o.dropout),
        nn.Linear(width, o.projection_hidden),
        nn.SiLU(),
        nn.Dropout(o.dropout),
        nn.Linear(o.projection_hidden, o.code_width),
    )


def _longest_text(encoder: TrainableEncoder) -> int:
    """Tokens of the longest target text, padding included."""
    settings: Any = getattr(encoder, "options", None)
    stated = int(getattr(encoder, "max_tokens", 0) or getattr(settings, "max_tokens", 1024))
    return -(-stated // TEXT_STEP) * TEXT_STEP


def _mean(loss: LossSum) -> Tensor:
    return global_mean(loss.total, loss.count)
