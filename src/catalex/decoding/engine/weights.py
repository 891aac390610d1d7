"""A T5's weights as the engine multiplies by them: transposed, gains folded in, layers stacked.

Letters: l decoder or encoder layers, H model width, h heads, d head width, I = h x d, F feed-forward width, V
vocabulary, P positions of an identifier.

A norm's gain scales the columns that the next product sums over, so it belongs to that product's matrix and
the norm itself only divides by the root mean square. Cross-attention exists in two forms:

* *spelled out*: queries, keys and values as T5 writes them, the keys and values of all layers from one
  product;
* *absorbed*: ``q k^T = n (Wq Wk^T) e^T``, so a query of width H can be held against the encoder's output e
  itself, which then serves all heads of all layers as keys and as values (DeepSeek-V2, arXiv 2405.04434,
  section 2.1, does so with its latent). With H = 128 the arithmetic is about equal, and what a user's beams
  read falls from 2 x l x I numbers a token to H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catalex.models.t5 import MAX_DISTANCE, T5, relative_buckets

HEAD_TILE = 64
"""Columns of the head are padded to a multiple of it."""


class Weights:
    """The packed copy. Its tensors stay where they are over a `refresh`, as captured graphs need.

    Attributes:
        encoder: ``qkv (l, H, 3I)``, ``out (l, I, H)``, ``wi (l, H, F)``, ``wo (l, F, H)``.
        decoder: The same, and of cross-attention ``q (l, H, I)``, ``cross_out (l, I, H)``. Absorbed:
            ``self_read``, ``self_write``, ``cross_read``, ``cross_write``, each ``(l, h, H, H)``: ``Wq Wk^T``
            and ``Wv Wo`` of every head; ``self_first (l, H, H)``, the sum of ``self_write`` over the heads,
            which is all of self-attention at the first position.
        keys_values: ``(H, l 2 I)`` of the spelled-out form.
        encoder_bias: ``(h, 2 MAX_DISTANCE + 1)`` float32, by key position minus query position.
        decoder_bias: ``(h, P)`` float32, by how many positions back the key is.
        table: ``(V, H)`` float32 embeddings. Residuals are float32 in every precision.
        head: ``(H, V padded)``, the tied embeddings with the last norm's gain and T5's ``H^-0.5``.
    """

    def __init__(self, model: T5, positions: int, dtype: torch.dtype) -> None:
        self.options, self.vocabulary, self.dtype = model.options, model.vocabulary, dtype
        self.device = model.embedding.weight.device
        self.positions = positions
        packed = _pack(model, positions)
        self._tensors = {
            name: value.to(torch.float32 if name in KEPT else dtype).contiguous()
            for name, value in packed.items()
        }
        of = self._tensors
        self.encoder = {name: of[f"encoder.{name}"] for name in ("qkv", "out", "wi", "wo")}
        self.decoder = {
            name: of[f"decoder.{name}"] for name in ("qkv", "out", "wi", "wo", "q", "cross_out", *ABSORBED)
        }
        self.keys_values, self.head, self.table = of["keys_values"], of["head"], of["table"]
        self.encoder_bias, self.decoder_bias = of["encoder_bias"], of["decoder_bias"]

    def refresh(self, model: T5) -> None:
        """Copy the model's present weights over the packed ones, in place."""
        for name, value in _pack(model, self.positions).items():
            self._tensors[name].copy_(value)


ABSORBED = ("self_read", "self_write", "self_first", "cross_read", "cross_write")
"""Matrices that only the kernels use."""
KEPT = ("encoder_bias", "decoder_bias", "table")
"""Tensors that stay float32: they are added to float32, not multiplied."""


@torch.no_grad()
def _pack(model: T5, positions: int) -> dict[str, Tensor]:
    o = model.options
    heads, width, hidden = o.heads, o.head_width, o.hidden
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    final = state["encoder_norm.weight"][:, None]

    def product(layer: str, norm: str, name: str) -> Tensor:
        """``(in, out)`` of a linear layer with the gain of the norm before it."""
        gain, weight = state[f"{layer}.{norm}.weight"], state[f"{layer}.{name}.weight"]
        folded: Tensor = gain[:, None] * weight.T
        return folded

    packed: dict[str, list[Tensor]] = {}

    def put(name: str, value: Tensor) -> None:
        packed.setdefault(name, []).append(value)

    for side in ("encoder", "decoder"):
        for number in range(o.layers):
            layer = f"{side}.{number}"
            put(f"{side}.qkv", product(layer, "attention_norm", "attention.qkv"))
            put(f"{side}.out", state[f"{layer}.attention.out.weight"].T)
            put(f"{side}.wi", product(layer, "feed_forward_norm", "feed_forward.wi"))
            put(f"{side}.wo", state[f"{layer}.feed_forward.wo.weight"].T)
            if side == "encoder":
                continue
            q = product(layer, "cross_norm", "cross.q")
            kv = final * state[f"{layer}.cross.kv.weight"].T
            out = state[f"{layer}.cross.out.weight"].T
            put("decoder.q", q)
            put("keys_values", kv)
            put("decoder.cross_out", out)
            ends = {"cross": (q, *kv.chunk(2, dim=1), out)}
            own = product(layer, "attention_norm", "attention.qkv").chunk(3, dim=1)
            ends["self"] = (*own, state[f"{layer}.attention.out.weight"].T)
            for kind, (*ins, last) in ends.items():
                first, key, value = (w.reshape(hidden, heads, width).transpose(0, 1) for w in ins)
                put(f"decoder.{kind}_read", first @ key.transpose(1, 2))
                put(f"decoder.{kind}_write", value @ last.reshape(heads, width, hidden))
            put("decoder.self_first", packed["decoder.self_write"][-1].sum(0))
    stacked = {name: torch.stack(values) for name, values in packed.items() if name != "keys_values"}
    stacked["keys_values"] = torch.cat(packed["keys_values"], dim=1)
    stacked["table"] = state["embedding.weight"]
    head = state["decoder_norm.weight"][:, None] * hidden**-0.5 * state["embedding.weight"].T
    stacked["head"] = torch.nn.functional.pad(head, (0, -model.vocabulary % HEAD_TILE))
    # bucket of every distance: the row of a query that has MAX_DISTANCE keys on either side
    around = relative_buckets(2 * MAX_DISTANCE + 1, 2 * MAX_DISTANCE + 1, bidirectional=True)[MAX_DISTANCE]
    behind = relative_buckets(positions, positions, bidirectional=False)[-1].flip(0)
    stacked["encoder_bias"] = state["encoder_bias.weight"][around.to(final.device)].T
    stacked["decoder_bias"] = state["decoder_bias.weight"][behind.to(final.device)].T
    return stacked
