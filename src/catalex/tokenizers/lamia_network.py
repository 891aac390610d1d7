"""The network behind LAMIA's palettes: an encoder, a decoder that sees the palette alone, three losses.

The paper (arXiv 2409.07276 v3) could be read in its abstract and a summary only; no code was found. The
equations are ours, after what those state. With the palette p_1..p_L of an item::

    L_txt = cross-entropy of its text, written word by word from [p_1 .. p_L] and the words before
    L_con = mean_l InfoNCE(p_l, p'_l; the batch)            two views of the item, cosine / tau
    L_div = mean_(l < m) cos(p_l, p_m)^2
    L     = L_txt + a L_con + b L_div

Encoders without words (``frozen``) reconstruct the content vector instead of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.features.trainable.base import Batch, TrainableEncoder
from catalex.models.gpt import Block, causal_mask, initialise
from catalex.models.losses import LossSum, summed_cross_entropy
from catalex.training.distributed import global_mean

WORDS, KEEP, VECTORS = "text_words", "text_keep", "content_vectors"
"""Keys of a batch beside those of the encoder."""


class TextDecoder(nn.Module):
    """Writes a text from a palette. The head is the table of words.

    Args:
        words: ``(V, d)`` starting embeddings.
        levels: L.
        longest: T, most words of a text.
        layers, heads, dropout: Of the causal blocks.
    """

    def __init__(
        self, words: Tensor, levels: int, longest: int, *, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        width = words.shape[1]
        self.levels = levels
        self.positions = nn.Embedding(levels + longest, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.apply(initialise)
        self.words = nn.Parameter(words.detach().clone())

    def states(self, palettes: Tensor, words: Tensor) -> Tensor:
        """States ``(B, T, d)`` that predict each of the words ``(B, T)``, from palettes ``(B, L, d)`` and the
        words before it: never from the text that the palettes were made of."""
        given = F.embedding(words[:, :-1], self.words)
        x = torch.cat([palettes, given], 1)
        x = x + self.positions.weight[: x.shape[1]]
        mask = causal_mask(x.shape[1], 1, x.device)
        mask[:, : self.levels] = True
        for block in self.blocks:
            x = block(x, mask)
        found: Tensor = self.norm(x[:, self.levels - 1 :])
        return found

    def forward(self, palettes: Tensor, words: Tensor, keep: Tensor) -> LossSum:
        """Cross-entropy of the words ``(B, T)`` where `keep` ``(B, T)`` holds."""
        states = self.states(palettes, words).flatten(0, 1)
        return summed_cross_entropy(states, self.words, words.flatten(), keep.flatten())


class LamiaNetwork(nn.Module):
    """Args:
    encoder: Items to hidden states ``(B, L, d)``, each of which depends on the content alone.
    vectors_width: D of the content vectors, which are reconstructed where there are no words.
    longest: Words of a text that the decoder writes.
    layers, heads, dropout: Of the text decoder.
    contrast, diversity: a and b.
    temperature: tau.
    drop: Share of words (or of entries of a vector) left out of each view.
    """

    def __init__(
        self,
        encoder: TrainableEncoder,
        vectors_width: int,
        *,
        longest: int,
        layers: int,
        heads: int,
        dropout: float,
        contrast: float,
        diversity: float,
        temperature: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.contrast, self.diversity = contrast, diversity
        self.temperature, self.drop = temperature, drop
        self.text: TextDecoder | None = None
        self.vector: nn.Linear | None = None
        if encoder.vocabulary is not None:
            self.text = TextDecoder(
                encoder.vocabulary, encoder.levels, longest, layers=layers, heads=heads, dropout=dropout
            )
        else:
            self.vector = nn.Linear(encoder.levels * encoder.width, vectors_width)

    def palettes(self, batch: Batch) -> Tensor:
        """``(B, L, d)`` float32, not normalised."""
        found: Tensor = self.encoder(batch)
        return found.float()

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        inputs = {key: value for key, value in batch.items() if key not in (WORDS, KEEP, VECTORS)}
        first = self.palettes(self.view(inputs))
        total = self.reconstruction(first, batch)
        if self.contrast:
            total = total + self.contrast * contrastive_loss(
                first, self.palettes(self.view(inputs)), self.temperature
            )
        if self.diversity:
            total = total + self.diversity * diversity_loss(first)
        return total

    def reconstruction(self, palettes: Tensor, batch: Batch) -> Tensor:
        """L_txt, or the mean squared error of the content vectors."""
        if self.text is not None:
            total, count = self.text(palettes, batch[WORDS], batch[KEEP])
            return global_mean(total, count)
        assert self.vector is not None
        restored: Tensor = self.vector(palettes.flatten(1))
        return (restored.float() - batch[VECTORS]).square().mean()

    def view(self, inputs: Batch) -> Batch:
        """The inputs with some words, or entries of the content vector, left out; in training only."""
        if not self.training or not self.drop:
            return inputs
        key = "real" if "real" in inputs else "vectors"
        kept = torch.rand(inputs[key].shape, device=inputs[key].device) >= self.drop
        if key == "vectors":
            return {**inputs, key: inputs[key] * kept / (1 - self.drop)}
        kept[:, 0] = True  # the token before the text, so that no row is empty
        return {**inputs, key: inputs[key] & kept}


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """L_con of two views ``(B, L, d)``: symmetric InfoNCE of each aspect, in float32; log B when all vectors
    are the same."""
    with torch.autocast(first.device.type, enabled=False):
        one, other = (F.normalize(part.float(), dim=-1).transpose(0, 1) for part in (first, second))
        scores = one @ other.transpose(1, 2) / temperature  # (L, B, B)
        target = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
        ways = [F.cross_entropy(s.flatten(0, 1), target.flatten()) for s in (scores, scores.transpose(1, 2))]
        return (ways[0] + ways[1]) / 2


def diversity_loss(palettes: Tensor) -> Tensor:
    """L_div of palettes ``(B, L, d)``; 0 with one aspect."""
    levels = palettes.shape[1]
    if levels == 1:
        return palettes.new_zeros(())
    with torch.autocast(palettes.device.type, enabled=False):
        unit = F.normalize(palettes.float(), dim=-1)
        squares = (unit @ unit.transpose(1, 2)).square()
        own = squares.diagonal(dim1=1, dim2=2).sum(1)
        return ((squares.sum((1, 2)) - own) / (levels * (levels - 1))).mean()
