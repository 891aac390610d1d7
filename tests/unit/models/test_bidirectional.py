"""The bidirectional block against transformers' Qwen2 layer, and what a mask must and must not do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from catalex.models.bidirectional import BidirectionalBlock, BlockShape, RMSNorm

SHAPE = BlockShape(width=48, heads=6, kv_heads=2, hidden=80)

NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "feed_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def blocks() -> tuple[BidirectionalBlock, Qwen2DecoderLayer, Qwen2RotaryEmbedding]:
    """Ours and theirs with equal, large, random weights (biases and gains too)."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=80,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attn_implementation="eager",
    )
    ours, theirs = BidirectionalBlock(SHAPE), Qwen2DecoderLayer(config, 0).eval()
    state = {}
    with torch.no_grad():
        for name, value in ours.named_parameters():
            value.copy_(torch.randn_like(value) * 0.3)
            part, kind = name.rsplit(".", 1)
            state[f"{NAMES[part]}.{kind}"] = value
    theirs.load_state_dict(state)
    return ours, theirs, Qwen2RotaryEmbedding(config)


@pytest.mark.parametrize("padded", [False, True])
def test_block_equals_qwen2_layer_with_a_full_mask(padded: bool) -> None:
    ours, theirs, rope = blocks()
    x = torch.randn(3, 11, 48, requires_grad=True)
    keep = torch.ones(3, 11, dtype=torch.bool)
    if padded:
        keep[0, 5:] = False
        keep[1, 1:] = False
    mask = torch.where(keep, 0.0, torch.finfo(torch.float32).min)[:, None, None, :].expand(3, 1, 11, 11)
    places = torch.arange(11)[None]
    expected = theirs(x, attention_mask=mask, position_ids=places, position_embeddings=rope(x, places))
    found = ours(x, keep)
    assert torch.allclose(found[keep], expected[keep], atol=2e-5)
    weight = torch.randn_like(found) * keep[..., None]
    (of_ours,) = torch.autograd.grad((found * weight).sum(), x)
    (of_theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(of_ours, of_theirs, atol=1e-4)
    causal = mask + torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)
    other = theirs(x, attention_mask=causal, position_ids=places, position_embeddings=rope(x, places))
    assert not torch.allclose(found[keep], other[keep], atol=1e-2)  # the mask matters in this comparison


def test_no_mask_equals_a_mask_that_keeps_all() -> None:
    block, _, _ = blocks()
    x = torch.randn(2, 7, 48)
    assert torch.allclose(block(x), block(x, torch.ones(2, 7, dtype=torch.bool)), atol=1e-6)


def test_every_position_sees_every_other() -> None:
    block, _, _ = blocks()
    x = torch.randn(1, 5, 48, requires_grad=True)
    out = block(x)
    for position in range(5):
        (slope,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
        assert (slope[0].abs().sum(1) > 0).all()


def test_padding_is_never_read() -> None:
    block, _, _ = blocks()
    x, keep = torch.randn(2, 6, 48), torch.ones(2, 6, dtype=torch.bool)
    keep[0, 3:] = False
    changed = x.clone()
    changed[0, 3:] = 100 * torch.randn(3, 48)
    assert torch.equal(block(x, keep)[keep], block(changed, keep)[keep])
    assert torch.allclose(block(x, keep)[0, :3], block(x[:1, :3])[0], atol=1e-5)


def test_sizes_of_known_models() -> None:
    assert BlockShape.for_width(1536) == BlockShape(1536, 12, 2, 6144, 1e6, 1e-6)
    assert BlockShape.for_width(384) == BlockShape(384, 6, 2, 1536, 1e6, 1e-6)
    assert BlockShape.for_width(576) == BlockShape(576, 9, 3, 2304, 1e6, 1e-6)
    assert BlockShape.for_width(1536).head_width == 128
    assert BlockShape.for_width(576).head_width == 64


@given(st.integers(1, 4096))
def test_any_width_has_a_shape(width: int) -> None:
    shape = BlockShape.for_width(width)
    assert shape.heads % shape.kv_heads == 0
    assert shape.head_width % 2 == 0
    assert 0 <= shape.heads * shape.head_width - width < 2 * shape.heads


@pytest.mark.parametrize("width", [1, 7, 50, 100])
def test_odd_widths_run(width: int) -> None:
    block = BidirectionalBlock(BlockShape.for_width(width))
    assert block(torch.randn(2, 3, width)).shape == (2, 3, width)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_heads must divide heads"):
        BlockShape(width=48, heads=6, kv_heads=4, hidden=80)


def test_norm_is_computed_in_float32() -> None:
    norm = RMSNorm(512, 1e-6).bfloat16()
    x = (torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * 50).bfloat16()
    exact = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), exact.bfloat16())


def test_block_of_the_paper_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        block = BidirectionalBlock(BlockShape.for_width(1536))
        assert block(torch.empty(2, 9, 1536)).shape == (2, 9, 1536)
    # attention: 1536 (1536 + 2 x 256) + 2048 biases + 1536^2; feed-forward: 3 x 1536 x 6144; two gains
    assert sum(p.numel() for p in block.parameters()) == 3145728 + 2048 + 2359296 + 28311552 + 3072
