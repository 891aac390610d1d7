"""The GPT block against transformers' GPT-2."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from catalex.models.gpt import Block, causal_mask


def test_the_mask_is_causal_over_blocks_and_open_inside_them() -> None:
    mask = causal_mask(6, 2, torch.device("cpu"))
    for t in range(6):
        assert mask[t].tolist() == [s // 2 <= t // 2 for s in range(6)]
    assert torch.equal(causal_mask(5, 1, torch.device("cpu")), torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("layers", [1, 3])
def test_a_causal_stack_computes_what_gpt2_computes(layers: int) -> None:
    """Independent implementation: `transformers.GPT2Model` with the same weights, dropout off."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_head=4, n_layer=layers, n_positions=12, vocab_size=10, attn_implementation="eager"
    )
    peer = GPT2Model(config).eval()
    stack = [Block(16, 4, 0.1).eval() for _ in range(layers)]
    for own, other in zip(stack, peer.h, strict=True):
        pairs = [
            (own.project, other.attn.c_attn),
            (own.output, other.attn.c_proj),
            (own.widen, other.mlp.c_fc),
            (own.narrow, other.mlp.c_proj),
        ]
        for linear, conv in pairs:  # GPT-2 keeps its matrices transposed
            linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data.normal_()
        for norm, theirs in ((own.attention_norm, other.ln_1), (own.feed_norm, other.ln_2)):
            norm.weight.data, norm.bias.data = theirs.weight.data.normal_(), theirs.bias.data.normal_()
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        expected = peer(inputs_embeds=x).last_hidden_state
        found = x + peer.wpe.weight[:9]
        for block in stack:
            found = block(found, causal_mask(9, 1, x.device))
        torch.testing.assert_close(peer.ln_f(found), expected, rtol=1e-4, atol=1e-5)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="10 is not divisible by 4"):
        Block(10, 4, 0.0)
