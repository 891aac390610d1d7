"""Constrained beam search as usually done: transformers' `generate` with a Python trie, or with a mask.

Both restrict after the log-softmax over the whole vocabulary, as catalex does: the answers are the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers

from catalex.decoding import Trie
from catalex.decoding.trie import DeviceTrie
from catalex.models.t5 import T5
from catalex.models.t5_folder import save_t5

Answer: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Items and scores, each ``(B, k)``."""

TRIE = "transformers generate with a Python trie"
MASK = "transformers generate with a vectorised mask"


def as_transformers(model: T5, device: str) -> Any:
    """The same weights as ``transformers.T5ForConditionalGeneration``."""
    with tempfile.TemporaryDirectory() as folder:
        save_t5(model, Path(folder))
        return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval().to(device)


class PythonTrie:
    """`prefix_allowed_tokens_fn` over a dict from each prefix to the tokens that may follow."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        children: dict[tuple[int, ...], set[int]] = {}
        for row in rows.tolist():
            for depth, token in enumerate(row):
                children.setdefault(tuple(row[:depth]), set()).add(token)
        self.children = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    def arguments(self) -> dict[str, Any]:
        return {
            "prefix_allowed_tokens_fn": lambda _, prefix: self.children[tuple(prefix.tolist()[1:])],
        }


class Mask(transformers.LogitsProcessor):  # type: ignore[misc]
    """No Python for each beam: all beams walk the arrays of the index at once, from the root at each step."""

    def __init__(self, index: DeviceTrie) -> None:
        self.index = index

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nodes = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        for level, token in zip(self.index.levels, input_ids.T[1:], strict=False):
            children, _, tokens = self._children(level, nodes)
            place = (tokens == token.unsqueeze(1)).to(torch.uint8).argmax(1, keepdim=True)
            nodes = children.gather(1, place).squeeze(1)
        _, valid, tokens = self._children(self.index.levels[input_ids.shape[1] - 1], nodes)
        mask = torch.full((len(scores), scores.shape[1] + 1), -torch.inf, device=scores.device)
        mask.scatter_(1, tokens.where(valid, scores.shape[1]), 0.0)
        return scores + mask[:, :-1]

    @staticmethod
    def _children(level: Any, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, end = level.starts[nodes].long(), level.starts[nodes + 1].long()
        children = first.unsqueeze(1) + torch.arange(level.fan_out, device=nodes.device)
        valid = children < end.unsqueeze(1)
        children = children.where(valid, 0)
        return children, valid, level.tokens[children].long().where(valid, -1)

    def arguments(self) -> dict[str, Any]:
        return {"logits_processor": transformers.LogitsProcessorList([self])}


class Peer:
    """Beam search of transformers under one of the two constraints."""

    def __init__(self, model: Any, constraint: PythonTrie | Mask, trie: Trie, beam: int, k: int) -> None:
        self.model, self.constraint, self.trie, self.beam, self.k = model, constraint, trie, beam, k

    def __call__(self, tokens: torch.Tensor) -> Answer:
        output = self.model.generate(
            tokens,
            attention_mask=(tokens != 0).long(),
            num_beams=self.beam,
            num_return_sequences=self.k,
            max_new_tokens=self.trie.length,
            length_penalty=0.0,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **self.constraint.arguments(),
        )
        items = self.trie.item_of(output.sequences[:, 1:].cpu().numpy())
        return torch.from_numpy(items).view(-1, self.k), output.sequences_scores.view(-1, self.k).cpu()
