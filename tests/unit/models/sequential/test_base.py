"""What all sequence models share: the loss in its three forms, and shared parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from catalex.models.sequential.parts import Block
from catalex.models.sequential.sasrec import SASRecModel

ITEMS = 20


def model() -> SASRecModel:
    torch.manual_seed(0)
    return SASRecModel(ITEMS, 5, hidden=8, layers=1, heads=2, dropout=0.0).eval()


def rows() -> torch.Tensor:
    return torch.randint(0, ITEMS, (3, 5), generator=torch.Generator().manual_seed(1))


def test_the_binary_loss_is_that_of_its_equation():
    """Kang & McAuley 2018, equation 6: - log sigmoid(next) - log(1 - sigmoid(negative)), padding left out."""
    network, targets = model(), (rows() + 3) % ITEMS
    targets[0, 2:] = -1
    negatives = (rows() + 7) % ITEMS
    batch = {"histories": rows(), "targets": targets, "negatives": negatives}
    states, terms = network(rows()).detach(), []
    for row, column in (targets >= 0).nonzero().tolist():
        scores = states[row, column] @ network.table.weight.detach().T
        liked, other = scores[targets[row, column]], scores[negatives[row, column]]
        terms.append(-math.log(torch.sigmoid(liked)) - math.log(1 - torch.sigmoid(other)))
    assert float(network.loss(batch).detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert float(network.loss(batch, "sum").detach()) == pytest.approx(sum(terms), rel=1e-5)


def test_the_binary_loss_starts_at_twice_log_2():
    batch = {"histories": rows(), "targets": (rows() + 3) % ITEMS, "negatives": (rows() + 7) % ITEMS}
    assert float(model().loss(batch).detach()) == pytest.approx(2 * math.log(2), abs=0.05)


def test_the_end_of_a_prefix_predicts_alone():
    network, lengths = model(), torch.tensor([5, 2, 1])
    histories = torch.where(torch.arange(5) < lengths[:, None], rows(), ITEMS)
    batch = {"histories": histories, "lengths": lengths, "targets": torch.tensor([3, 4, 5])}
    own = [network.logits(network(histories[i : i + 1, :n])[0, -1]) for i, n in enumerate(lengths.tolist())]
    expected = F.cross_entropy(torch.stack(own), batch["targets"])
    torch.testing.assert_close(network.loss(batch), expected)


def test_a_causal_mask_with_padding_equals_the_plain_causal_one():
    torch.manual_seed(0)
    block, x = Block(8, 2, 0.0).eval(), torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x, torch.ones(2, 5, dtype=torch.bool)), block(x))
    left = torch.tensor([[False, False, True, True, True]]).expand(2, -1)
    torch.testing.assert_close(block(x, left)[:, 2:], block(x[:, 2:]))
    assert block(x, left).isfinite().all()


def test_what_belongs_to_one_catalogue_is_named():
    names = {name.split(".")[0] for name in model().state_dict()}
    assert set(SASRecModel.own) == {"table"} < names
