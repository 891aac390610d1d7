"""BERT4Rec's network: its blocks are BERT's, masks are filled in, padding is not seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer, BertPredictionHeadTransform

from catalex.models.sequential.bert4rec import BERT4RecModel
from catalex.models.sequential.parts import Block, counted_back

ITEMS, LENGTH = 30, 6


@pytest.fixture
def model() -> BERT4RecModel:
    torch.manual_seed(0)
    return BERT4RecModel(ITEMS, LENGTH, hidden=16, layers=2, heads=2, dropout=0.3).eval()


def histories(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, ITEMS, (rows, length), generator=torch.Generator().manual_seed(1))


CONFIG = BertConfig(
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=64,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    attn_implementation="eager",
)


def copied(block: Block) -> BertLayer:
    """The layer of the `transformers` package with the weights of our block."""
    layer = BertLayer(CONFIG).eval()
    parts = dict(zip(("query", "key", "value"), block.project.weight.chunk(3), strict=True))
    biases = dict(zip(("query", "key", "value"), block.project.bias.chunk(3), strict=True))
    pairs = {
        layer.attention.output.dense: block.output,
        layer.attention.output.LayerNorm: block.attention_norm,
        layer.intermediate.dense: block.widen,
        layer.output.dense: block.narrow,
        layer.output.LayerNorm: block.feed_norm,
    }
    with torch.no_grad():
        for name, weight in parts.items():
            getattr(layer.attention.self, name).weight.copy_(weight)
            getattr(layer.attention.self, name).bias.copy_(biases[name])
        for theirs, ours in pairs.items():
            theirs.load_state_dict(ours.state_dict())
    return layer


@pytest.mark.parametrize("length", [6, 4])
def test_a_block_equals_the_bert_layer_of_transformers(model, length):
    block, x = model.blocks[0], torch.randn(2, 6, 16)
    keep = torch.arange(6) < torch.tensor([[6], [length]])
    mask = torch.where(keep, 0.0, -10_000.0)[:, None, None, :]
    theirs = copied(block)(x, attention_mask=mask)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    torch.testing.assert_close(block(x, keep)[keep], theirs[keep], rtol=1e-5, atol=1e-5)


def test_the_output_layer_equals_that_of_bert(model):
    head = BertPredictionHeadTransform(CONFIG)
    head.dense.load_state_dict(model.transform.state_dict())
    head.LayerNorm.load_state_dict(model.output_norm.state_dict())
    states = torch.randn(5, 16)
    with torch.no_grad():
        model.bias.normal_()
    expected = head(states) @ model.table.weight[:ITEMS].T + model.bias
    torch.testing.assert_close(model.logits(states), expected)


def test_a_mask_is_put_behind_the_history(model):
    rows, lengths = histories(), torch.tensor([6, 3, 1])
    rows = torch.where(torch.arange(LENGTH) < lengths[:, None], rows, ITEMS)
    found = model.last(rows, lengths)
    for row, length in enumerate(lengths.tolist()):
        filled = torch.cat([rows[row, :length], torch.tensor([model.mask])])[None]
        torch.testing.assert_close(found[row], model(filled)[0, -1])


def test_positions_see_both_ways_but_no_padding(model):
    rows = histories()
    other = rows.clone()
    other[:, 5] = (other[:, 5] + 1) % ITEMS
    assert not torch.allclose(model(rows)[:, 0], model(other)[:, 0])
    padded = F.pad(rows, (0, 1), value=ITEMS)
    torch.testing.assert_close(model(padded)[:, :LENGTH], model(rows))


def test_the_mask_has_no_score(model):
    assert model.logits(model(histories())).shape == (3, LENGTH, ITEMS)


def test_positions_are_counted_back_from_the_latest():
    rows = torch.tensor([[4, 5, 6, ITEMS], [7, ITEMS, ITEMS, ITEMS], [ITEMS] * 4])
    assert counted_back(rows, ITEMS).tolist() == [[2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_counted_from_the_latest_the_mask_has_one_position():
    torch.manual_seed(0)
    model = BERT4RecModel(ITEMS, LENGTH, 16, layers=2, heads=2, dropout=0.3, latest_first=True).eval()
    rows, lengths = histories(), torch.tensor([6, 3, 1])
    rows[torch.arange(LENGTH) >= lengths[:, None]] = ITEMS
    found = model.last(rows, lengths)
    torch.testing.assert_close(found[1:2], model.last(rows[1:2, :3], lengths[1:2]))  # padding changes nothing
    with torch.no_grad():
        model.positions.weight[2:4] += torch.randn(16)  # read by the two longer histories
    changed = model.last(rows, lengths)
    torch.testing.assert_close(changed[2], found[2])
    assert not torch.allclose(changed[0], found[0])
    with torch.no_grad():
        model.positions.weight[0] += torch.randn(16)  # that of the mask, whatever the length
    assert not torch.isclose(model.last(rows, lengths), changed).all(1).any()


def test_an_output_layer_of_its_own():
    torch.manual_seed(0)
    model = BERT4RecModel(ITEMS, LENGTH, 16, layers=1, heads=2, dropout=0.0, tied=False).eval()
    states = torch.randn(5, 16)
    head = model.output_norm(F.gelu(model.transform(states)))
    torch.testing.assert_close(model.logits(states), head @ model.out.weight.T + model.bias)
