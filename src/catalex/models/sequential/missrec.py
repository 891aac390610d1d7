"""MISSRec: a user's interests are clusters of contents; a decoder reads the history with them in view (Wang
et al. 2023, arXiv 2308.11175).

Interests are centres of clusters of frozen content vectors. As the adaptors are affine, the adapted centre is
the mean of the adapted vectors: what the official code refreshes every epoch is here true at every step, only
who belongs to which cluster stays as it was.

Shape letters: B batch, S items of a history, H model width, N items, C clusters, m modalities (text, image),
D width of the vectors of a modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import Reduction
from catalex.models.sequential.content import ContrastiveModel, cosines, dropped, in_batch_contrast, unit
from catalex.models.sequential.parts import EPSILON, Block, initialise


class Modality(NamedTuple):
    """Contents of one kind.

    Attributes:
        vectors: ``(N, D)``; a row of zeros where an item has none.
        centres: ``(C, D)`` of the clusters.
        interests: ``(N,)`` cluster of each item; read only where the item has a vector.
    """

    vectors: Tensor
    centres: Tensor
    interests: Tensor


class CrossBlock(nn.Module):
    """A decoder block: attention among the history (both ways), attention to the interests, feed-forward
    part, each with dropout, residual and normalisation after it."""

    def __init__(self, hidden: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.among = Block(hidden, heads, dropout, inner=inner, causal=False)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, EPSILON)

    def forward(self, x: Tensor, keep: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        """``(B, S, H)`` to ``(B, S, H)``.

        Args:
            x: States of the history.
            keep: ``(B, S)`` where it has items.
            memory: ``(B, I, H)`` interests.
            known: ``(B, I)`` which of them there are; at least one a row.
        """
        dropout = self.dropout if self.training else 0.0
        x = self.among.attention_norm(x + self.among._attend(x, keep))
        query = self._split(self.query(x))
        key, value = (self._split(part) for part in self.key_value(memory).chunk(2, -1))
        mask = known[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        found = self.output(mixed.transpose(1, 2).flatten(2))
        x = self.norm(x + F.dropout(found, self.dropout, self.training))
        read: Tensor = self.among.feed_norm(x + self.among._feed(x))
        return read

    def _split(self, x: Tensor) -> Tensor:
        """``(B, n, H)`` to ``(B, heads, n, H / heads)``."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class MISSRecModel(ContrastiveModel):
    """Interests through an encoder, the history through a decoder that attends to them, fused scores.

    Args:
        modalities: Text, and images where they are used.
        length, hidden, heads, inner, dropout, temperature: As in `ContentModel`.
        layers: Blocks of the encoder, and as many of the decoder.
        ids: Whether items have embeddings of their own (transductive).
        apart: Weight of the regularisation that keeps interests from adding up.
    """

    own: ClassVar[tuple[str, ...]] = ("table", "known")

    def __init__(
        self,
        modalities: list[Modality],
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        temperature: float,
        *,
        ids: bool,
        apart: float,
    ) -> None:
        items = len(modalities[0].vectors)
        super().__init__(items, length, hidden, 0, heads, inner, dropout, temperature)
        self.ids, self.apart = ids, apart
        self.known = nn.ModuleList([_Known(modality) for modality in modalities])
        self.adaptors = nn.ModuleList([nn.Linear(m.vectors.shape[1], hidden) for m in modalities])
        self.encoder = nn.ModuleList(
            [Block(hidden, heads, dropout, inner=inner, causal=False) for _ in range(layers)]
        )
        self.decoder = nn.ModuleList([CrossBlock(hidden, heads, inner, dropout) for _ in range(layers)])
        self.fusion = nn.Parameter(torch.zeros(1))
        """Sharpness of the choice between modalities: at zero their scores are averaged."""
        initialise(self)
        if ids:
            self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
            nn.init.zeros_(self.table.weight)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """As in the base class."""
        parts = (self.positions, self.input_norm, self.encoder, self.decoder)
        return [parameter for part in parts for parameter in part.parameters()]

    # --- reading --------------------------------------------------------------------------------------------

    def vectors_of(self, items: Tensor) -> Tensor:
        """Sum of the adapted contents that an item has, and its own embedding where there is one."""
        total = torch.stack([self._adapted(number, items) for number in range(len(self.known))]).sum(0)
        return total + self.table(items) if self.ids else total

    def _adapted(self, number: int, items: Tensor) -> Tensor:
        """``(.., H)`` adapted vectors of one modality, zero where items have none."""
        known = self._known_of(number)
        moved: Tensor = self.adaptors[number](known.vectors[items])
        return moved * known.present[items].unsqueeze(-1)

    def _known_of(self, number: int) -> _Known:
        known = self.known[number]
        assert isinstance(known, _Known)
        return known

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; every position knows the whole history, so only prefixes may train it."""
        return self.read_with_interests(histories)[0]

    def read_with_interests(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """States ``(B, S', H)`` and the mean ``(B, H)`` of each user's interests after the encoder."""
        memory, known = self.interests_of(histories)
        for block in self.encoder:
            memory = block(memory, known)
        x = self.vectors_of(histories) + self.positions.weight[: histories.shape[1]]
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        keep = histories != self.items
        for block in self.decoder:
            x = block(x, keep, memory, known)
        shares = known.float() / known.sum(1, keepdim=True).clamp(min=1)
        return x, (memory * shares.unsqueeze(-1)).sum(1)

    def interests_of(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted centres ``(B, m S', H)`` of the interests in histories ``(B, S')`` in the order of their
        numbers, and which of them are first mentions ``(B, m S')``: an interest counts once."""
        found, real = [], []
        for number in range(len(self.known)):
            known = self._known_of(number)
            absent = len(known.centres)
            numbers = torch.where(known.present[histories], known.interests[histories], absent)
            numbers = numbers.sort(1).values
            first = torch.ones_like(numbers, dtype=torch.bool)
            first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
            found.append(self.adaptors[number](known.centres[numbers.clamp(max=absent - 1)]))
            real.append(first & (numbers < absent))
        memory, mask = torch.cat(found, 1), torch.cat(real, 1)
        first_place = torch.arange(mask.shape[1], device=mask.device) == 0
        return memory, mask | (first_place & ~mask.any(1, keepdim=True))  # attention to nothing has no value

    # --- scoring --------------------------------------------------------------------------------------------

    def candidates_of(self, items: Tensor) -> Tensor:
        """``(n, m, H)`` unit vectors by modality, zero where there is none, and the own one last with ids."""
        parts = [unit(self._adapted(number, items)) for number in range(len(self.known))]
        return torch.stack([*parts, unit(self.table(items))] if self.ids else parts, 1)

    def logits(self, states: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Cosines of the modalities fused by a softmax over themselves (equation 13), over the temperature;
        with ids ``(s_id + 2 s_fused) / 3``. A modality that an item lacks does not count."""
        table = self.candidates() if candidates is None else candidates
        query, count = unit(states), len(self.known)
        scores = [cosines(query, table[:, number]) for number in range(count)]
        fused = scores[0]
        if count > 1:
            lacking = [(table[:, number] == 0).all(-1) for number in range(count)]
            weights = [
                (self.fusion * score).masked_fill(none, -1e9)
                for score, none in zip(scores, lacking, strict=True)
            ]
            top = torch.stack(weights).amax(0).detach()
            powers = [(weight - top).exp() for weight in weights]
            fused = torch.stack([p * s for p, s in zip(powers, scores, strict=True)]).sum(0)
            fused = fused / torch.stack(powers).sum(0)
        if self.ids:
            fused = (cosines(query, table[:, count]) + 2 * fused) / 3
        return fused / self.temperature

    # --- losses ---------------------------------------------------------------------------------------------

    def loss(self, batch: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
        """The full softmax over all items at the end of each prefix, and the regularisation."""
        state, pooled = self._ends(batch["histories"], batch["lengths"])
        logits = self.logits(state).float()
        found = F.cross_entropy(logits, batch["targets"], reduction=reduction)
        return found + self.apart * self._crowding(pooled, reduction)

    def contrast(self, batch: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
        """As in the base class, with the regularisation of both copies."""
        targets = batch["targets"]
        states, pooled = self._ends(batch["histories"], batch["lengths"])
        others, again = self._ends(*dropped(batch["histories"], batch["lengths"], self.items, self.drop))
        found = in_batch_contrast(self.logits(states, self.candidates_of(targets)), targets, None, reduction)
        pairs = cosines(unit(states), unit(others)) / self.temperature
        crowding = self._crowding(pooled, reduction) + self._crowding(again, reduction)
        return found + self.alike * in_batch_contrast(pairs, targets, None, reduction) + self.apart * crowding

    def _ends(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states, pooled = self.read_with_interests(histories)
        return states[torch.arange(len(lengths), device=states.device), lengths - 1], pooled

    @staticmethod
    def _crowding(pooled: Tensor, reduction: Reduction) -> Tensor:
        """Squared length of a user's mean interest ``(B, H)`` over H: small where interests point apart. (The
        official code sums over the batch.)"""
        each = pooled.float().square().mean(1)
        return each.sum() if reduction == "sum" else each.mean()


class _Known(nn.Module):
    """Contents of one modality with a row for padding, which has none. The clusters are saved."""

    vectors: Tensor
    present: Tensor
    centres: Tensor
    interests: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        vectors = F.pad(modality.vectors, (0, 0, 0, 1))
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("present", vectors.any(1), persistent=False)
        self.register_buffer("centres", modality.centres.clone())
        self.register_buffer("interests", F.pad(modality.interests.long(), (0, 1)))
