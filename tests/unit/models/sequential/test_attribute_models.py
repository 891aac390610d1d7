"""FDSA and S3-Rec: attributes, two streams, and the four tasks of pre-training against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from catalex.data.histories import Histories
from catalex.models.sequential.attributes import AttributeLists
from catalex.models.sequential.fdsa import AttributeFeatures, FDSAModel, VectorFeatures
from catalex.models.sequential.s3rec import S3RecModel, Weights, told_apart

N, S, H, A = 9, 5, 8, 4
OWNED = [[0], [1, 2], [], [3], [0, 3], [2], [1], [0, 1, 2, 3], [2, 3]]


def lists(further: int = 1) -> AttributeLists:
    return AttributeLists(Histories.from_lists(OWNED), A, further)


def s3rec() -> S3RecModel:
    torch.manual_seed(0)
    model = S3RecModel(N, lists(2), S, H, 2, 2, 0.3)
    for parameter in model.parameters():  # larger than at the start, so that differences show
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def fdsa(kind: str) -> FDSAModel:
    torch.manual_seed(0)
    features = VectorFeatures(torch.randn(N, 6), H) if kind == "vectors" else AttributeFeatures(lists(), H)
    return FDSAModel(N, features, S, H, 2, 2, 0.3).eval()


def windows() -> Tensor:
    return torch.tensor([[0, 1, 2, N, N], [3, 4, 5, 6, 7], [8, 7, N, N, N]])


# --- attributes ---------------------------------------------------------------------------------------------


def test_attributes_of_items_are_padded() -> None:
    words, real = lists()(torch.tensor([[1, 2], [7, N]]))
    assert words.shape == (2, 2, 4)
    assert words[0, 0].tolist() == [1, 2, A, A]
    assert real.sum(-1).tolist() == [[2, 0], [4, 0]]
    assert AttributeLists(Histories.from_lists([[], []]), 1)(torch.tensor([0]))[1].sum() == 0
    assert AttributeLists(Histories.from_lists([[0, 1, 2]]), 3, most=2).words[0].tolist() == [1, 2]


# --- FDSA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vectors", "attributes"])
def test_fdsa_sees_neither_the_future_nor_padding(kind: str) -> None:
    model = fdsa(kind)
    states = model(torch.tensor([[0, 1, 2, 3, 4]]))
    torch.testing.assert_close(model(torch.tensor([[0, 1, 2, 8, 7]]))[:, :3], states[:, :3])
    torch.testing.assert_close(model(torch.tensor([[0, 1, 2, N, N]]))[:, :3], states[:, :3])


def test_features_matter_in_histories_and_not_in_candidates() -> None:
    model = fdsa("vectors")
    assert isinstance(model.features, VectorFeatures)
    state = model(torch.tensor([[0, 1]]))[:, -1]
    candidates = model.candidates()
    model.features.vectors[:] = torch.randn_like(model.features.vectors)
    assert not torch.allclose(model(torch.tensor([[0, 1]]))[:, -1], state)
    assert torch.equal(model.candidates(), candidates)
    assert torch.equal(candidates, model.table.weight[:N])


def test_attributes_are_mixed_by_attention() -> None:
    features = fdsa("attributes").features
    assert isinstance(features, AttributeFeatures)
    mixed = features(torch.tensor([[1, 2, 7]]))[0]
    for place, item in enumerate([1, 2, 7]):
        rows = [features.table.weight[word] for word in OWNED[item]]
        scores = [features.score(torch.tanh(features.weigh(row)))[0] for row in rows]
        shares = torch.softmax(torch.stack(scores), 0) if rows else torch.zeros(0)
        expected = sum((s * row for s, row in zip(shares, rows, strict=True)), torch.zeros(H))
        torch.testing.assert_close(mixed[place], expected, rtol=1e-4, atol=1e-6)


# --- S3-Rec -------------------------------------------------------------------------------------------------


def test_fine_tuning_is_causal_and_pre_training_looks_both_ways() -> None:
    model = s3rec()
    one, other = torch.tensor([[0, 1, 2, 3, N]]), torch.tensor([[0, 1, 2, 8, N]])
    torch.testing.assert_close(model(one)[:, :3], model(other)[:, :3])
    forth, back = (model._read(rows, both_ways=True)[:, :3] for rows in (one, other))
    assert not torch.allclose(forth, back)
    shorter = model._read(torch.tensor([[0, 1, 2, N, N]]), both_ways=True)[:, :3]
    torch.testing.assert_close(model._read(torch.tensor([[0, 1, 2]]), both_ways=True), shorter)
    torch.testing.assert_close(model(one)[:, :3], model(other)[:, :3])  # and causal again


def test_attribute_losses_are_binary_cross_entropies_over_all_attributes() -> None:
    model, states = s3rec(), torch.randn(3, S, H)
    counted = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    for name, loss in (
        ("associated", model.associated_loss),
        ("masked_attributes", model.masked_attribute_loss),
    ):
        total = torch.zeros(())
        for row, column in counted.nonzero().tolist():
            logits = model.attribute_table.weight @ model.heads[name](states[row, column])
            wanted = torch.zeros(A)
            wanted[OWNED[int(windows()[row, column])]] = 1
            total += F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        torch.testing.assert_close(loss(states, windows(), counted), total, rtol=1e-4, atol=1e-4)


def test_masked_items_are_told_from_other_items() -> None:
    """With all items but the right one at the origin, the negative's logit is 0 whichever it is."""
    model, states = s3rec(), torch.randn(3, S, H)
    counted = torch.zeros(3, S, dtype=torch.bool)
    counted[1, 2] = True
    model.table.weight.data[[item for item in range(N + 2) if item != 5]] = 0
    query = model.heads["masked_item"](states[1, 2])
    liked = torch.sigmoid(query @ model.table.weight[5])
    expected = -torch.log(torch.sigmoid(liked - 0.5))
    torch.testing.assert_close(model.masked_item_loss(states, windows(), counted), expected)


def test_the_official_comparison_has_a_floor() -> None:
    best = told_apart(torch.tensor(50.0), torch.tensor(-50.0))
    assert float(best) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(told_apart(torch.tensor(0.3), torch.tensor(0.3))) == pytest.approx(math.log(2))


def test_segments_are_cut_from_the_row_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = s3rec(), []
    read = model._read

    def spy(rows: Tensor, *, both_ways: bool) -> Tensor:
        seen.append(rows)
        return read(rows, both_ways=both_ways)

    monkeypatch.setattr(model, "_read", spy)
    lengths = torch.tensor([3, 5, 2])
    for seed in range(30):
        torch.manual_seed(seed)
        model.segment_loss(windows(), lengths)
    sizes = set()
    for rows in seen:
        for context, segment, other, own, following, length in zip(
            *rows.chunk(3), windows(), windows().roll(-1, 0), lengths.tolist(), strict=True
        ):
            inside = segment[:length] < N
            sizes.add((length, int(inside.sum())))
            places = inside.nonzero().flatten()
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))  # in one piece
            assert torch.equal(segment[:length][inside], own[:length][inside])
            assert torch.equal(context[:length][~inside], own[:length][~inside])
            assert (context[:length][inside] == N + 1).all()
            assert (segment[:length][~inside] == N + 1).all()
            assert set(other[:length][inside].tolist()) <= set(following[following < N].tolist())
            assert all((view[length:] == N).all() for view in (context, segment, other))
    assert sizes == {(3, 1), (5, 1), (5, 2), (2, 1)}


def test_weights_choose_the_tasks() -> None:
    model = s3rec()
    totals = []
    for weights in (Weights(1, 0, 0, 0), Weights(0, 1, 0, 0), Weights(0, 0, 1, 0), Weights(0, 0, 0, 1)):
        torch.manual_seed(3)
        totals.append(float(model.pretraining_loss({"windows": windows()}, weights, 0.2).detach()))
    torch.manual_seed(3)
    together = model.pretraining_loss({"windows": windows()}, Weights(0.2, 1, 1, 0.5), 0.2)
    expected = 0.2 * totals[0] + totals[1] + totals[2] + 0.5 * totals[3]
    assert float(together.detach()) == pytest.approx(expected, rel=1e-5)
    together.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_mask_is_no_candidate() -> None:
    model = s3rec()
    assert model.candidates().shape == (N, H)
    assert model.logits(model(windows()[:, :2])[:, -1]).shape == (3, N)
