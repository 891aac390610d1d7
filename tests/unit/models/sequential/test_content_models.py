"""UniSRec and VQ-Rec: adaptor, contrast, dropped items, codes and their alignment, against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from catalex.models.sequential.content import ContentModel, dropped, in_batch_contrast
from catalex.models.sequential.unisrec import LEAST_NOISE, Adaptor, UniSRecModel
from catalex.models.sequential.vqrec import Alignment, VQRecModel, permutation, sinkhorn

N, S, H, D = 11, 5, 8, 6
SIZES = {"length": S, "hidden": H, "layers": 2, "heads": 2, "inner": 12, "dropout": 0.3, "temperature": 0.07}


def unisrec(*, ids: bool = False, vectors: Tensor | None = None) -> UniSRecModel:
    torch.manual_seed(0)
    contents = torch.randn(N, D) if vectors is None else vectors
    model = UniSRecModel(contents, **SIZES, experts=3, adaptor_dropout=0.2, ids=ids)  # type: ignore[arg-type]
    return model.eval()


def vqrec() -> VQRecModel:
    torch.manual_seed(0)
    parts = {"mean": torch.zeros(D), "rotation": torch.eye(D), "codebooks": torch.randn(3, 4, 2)}
    model = VQRecModel(torch.randint(4, (N, 3)), 4, parts, **SIZES, replaced=0.75)  # type: ignore[arg-type]
    return model.eval()


@pytest.fixture(params=["unisrec", "unisrec with ids", "vqrec"])
def model(request: pytest.FixtureRequest) -> ContentModel:
    if request.param == "vqrec":
        return vqrec()
    return unisrec(ids="ids" in request.param)


def batch() -> dict[str, Tensor]:
    return {
        "histories": torch.tensor([[0, 1, 2, N, N], [3, 4, 5, 6, 7], [8, N, N, N, N], [1, 2, N, N, N]]),
        "lengths": torch.tensor([3, 5, 1, 2]),
        "targets": torch.tensor([3, 9, 3, 10]),
    }


def value(scalar: Tensor) -> float:
    return float(scalar.detach())


# --- reading and scoring ------------------------------------------------------------------------------------


def test_later_items_and_padding_change_no_earlier_state(model: ContentModel) -> None:
    states = model(torch.tensor([[0, 1, 2, 3, 4]]))
    torch.testing.assert_close(model(torch.tensor([[0, 1, 2, 9, 8]]))[:, :3], states[:, :3])
    torch.testing.assert_close(model(torch.tensor([[0, 1, 2, N, N]]))[:, :3], states[:, :3])
    torch.testing.assert_close(model(torch.tensor([[0, 1, 2]])), states[:, :3])


def test_scores_are_cosines_over_the_temperature(model: ContentModel) -> None:
    state = model.last(batch()["histories"], batch()["lengths"])
    scores = model.logits(state)
    assert scores.shape == (4, N)
    for row in range(4):
        for item in range(N):
            other = model.vectors_of(torch.tensor(item))
            cosine = torch.dot(state[row], other) / (state[row].norm() * other.norm())
            assert value(scores[row, item]) == pytest.approx(value(cosine) / 0.07, abs=1e-3)


def test_the_loss_before_training_is_that_of_guessing() -> None:
    """Cosines of random vectors spread by the temperature, so the loss is about log N and a little more."""
    torch.manual_seed(1)
    model = unisrec(vectors=torch.randn(N, D))
    loss = value(model.loss(batch()))
    assert math.log(N) - 3 < loss < math.log(N) + 15


def test_items_under_other_numbers_get_the_same_scores() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    one, other = unisrec(), unisrec()
    other.contents[:N] = one.contents[:N][order]
    place = torch.empty(N + 1, dtype=torch.int64)
    place[order], place[N] = torch.arange(N), N
    histories, lengths = batch()["histories"], batch()["lengths"]
    scores = one.logits(one.last(histories, lengths))
    moved = other.logits(other.last(place[histories], lengths))
    torch.testing.assert_close(moved, scores[:, order])


def test_fresh_ids_change_nothing_and_trained_ones_do() -> None:
    with_ids, without = unisrec(ids=True), unisrec()
    histories, lengths = batch()["histories"], batch()["lengths"]
    expected = without.logits(without.last(histories, lengths))
    torch.testing.assert_close(with_ids.logits(with_ids.last(histories, lengths)), expected)
    torch.nn.init.normal_(with_ids.table.weight)
    assert not torch.allclose(with_ids.logits(with_ids.last(histories, lengths)), expected)


def test_contents_are_not_among_the_weights() -> None:
    assert not any("contents" in name for name in unisrec().state_dict())


def test_scores_stay_exact_in_short_numbers(model: ContentModel) -> None:
    states, table = torch.randn(3, H), model.candidates().detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.logits(states, table)
        loss = model.contrast(batch())  # type: ignore[operator]
    assert scores.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(scores, model.logits(states, table))
    assert torch.isfinite(loss)


# --- the adaptor --------------------------------------------------------------------------------------------


def test_the_adaptor_is_the_mean_of_its_experts_at_first_and_their_mixture_later() -> None:
    torch.manual_seed(0)
    adaptor, rows = Adaptor(D, H, 3, 0.0).eval(), torch.randn(5, D)
    torch.nn.init.normal_(adaptor.shift)

    def expert(k: int, x: Tensor) -> Tensor:
        return (x - adaptor.shift[k]) @ adaptor.weight[k]

    mean = torch.stack([expert(k, rows) for k in range(3)]).mean(0)
    torch.testing.assert_close(adaptor(rows), mean, rtol=1e-4, atol=1e-5)
    torch.nn.init.normal_(adaptor.gate)
    for row, x in zip(adaptor(rows), rows, strict=True):
        shares = torch.softmax(x @ adaptor.gate, 0)
        mixed = torch.stack([shares[k] * expert(k, x) for k in range(3)]).sum(0)
        torch.testing.assert_close(row, mixed, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # in pieces
        torch.testing.assert_close(adaptor(rows.repeat(4000, 1))[-5:], adaptor(rows), rtol=1e-4, atol=1e-5)


def test_the_gate_is_noisy_in_training_only() -> None:
    adaptor, rows = Adaptor(D, H, 3, 0.0), torch.randn(5, D)
    assert not torch.equal(adaptor(rows), adaptor(rows))
    adaptor.eval()
    assert torch.equal(adaptor(rows), adaptor(rows))
    assert LEAST_NOISE > 0


# --- pre-training -------------------------------------------------------------------------------------------


def test_contrast_leaves_out_rows_with_the_same_target() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    further = torch.randn(4, 1, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([3, 9, 3, 10])
    total = 0.0
    for i in range(4):
        others = [value(logits[i, j]) for j in range(4) if j == i or targets[j] != targets[i]]
        total -= value(logits[i, i]) - math.log(sum(map(math.exp, [*others, value(further[i])])))
    assert value(in_batch_contrast(logits, targets, further)) == pytest.approx(total / 4, rel=1e-5)
    assert value(in_batch_contrast(logits, targets, further, "sum")) == pytest.approx(total, rel=1e-5)


def test_a_perfect_batch_has_no_loss_and_gradients_are_finite(model: ContentModel) -> None:
    assert value(in_batch_contrast(100 * torch.eye(4), batch()["targets"])) == pytest.approx(0, abs=1e-6)
    model.train()
    model.contrast(batch()).backward()  # type: ignore[operator]
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found
    assert all(torch.isfinite(gradient).all() for gradient in found)


def test_the_second_task_counts_as_told() -> None:
    model = unisrec()
    torch.manual_seed(5)
    model.alike = 0.0
    without = value(model.contrast(batch()))
    model.alike, model.drop = 1.0, 0.0
    states = model.last(batch()["histories"], batch()["lengths"])
    pairs = torch.nn.functional.cosine_similarity(states[:, None], states, dim=-1) / 0.07
    expected = without + value(in_batch_contrast(pairs, batch()["targets"]))
    assert value(model.contrast(batch())) == pytest.approx(expected, rel=1e-4)


def test_dropped_items_leave_the_others_in_order() -> None:
    torch.manual_seed(0)
    histories = torch.arange(20).repeat(2000, 1)
    lengths = torch.randint(1, 21, (2000,))
    histories = histories.where(torch.arange(20) < lengths[:, None], 99)
    kept, sizes = dropped(histories, lengths, 99, 0.2)
    assert ((sizes >= 1) & (sizes <= lengths)).all()
    share = value(sizes[lengths > 5].sum() / lengths[lengths > 5].sum())
    assert share == pytest.approx(0.8, abs=0.01)
    for row, size, length in zip(kept[:200].tolist(), sizes.tolist(), lengths.tolist(), strict=False):
        assert row[:size] == sorted(set(row[:size]))
        assert max(row[:size]) < length
        assert row[size:] == [99] * (20 - size)
    everything, all_sizes = dropped(histories, lengths, 99, 0.0)
    assert torch.equal(everything, histories)
    assert torch.equal(all_sizes, lengths)
    last, ones = dropped(histories, lengths, 99, 1.0)
    assert torch.equal(last[:, 0], lengths - 1)
    assert (ones == 1).all()


# --- VQ-Rec -------------------------------------------------------------------------------------------------


def test_an_item_is_the_mean_of_its_code_embeddings() -> None:
    model = vqrec()
    for item in range(N):
        rows = [model.code_table.weight[4 * m + int(model.codes[item, m])] for m in range(3)]
        torch.testing.assert_close(model.vectors_of(torch.tensor(item)), torch.stack(rows).mean(0))


def test_synthetic_negatives_differ_as_often_as_told() -> None:
    model = vqrec()
    state, targets = torch.randn(3000, H), torch.zeros(3000, dtype=torch.int64)
    model.replaced = 0.0
    same = torch.nn.functional.cosine_similarity(state, model.vectors_of(targets)) / 0.07
    torch.testing.assert_close(model.synthetic(state, targets)[:, 0], same, rtol=1e-3, atol=1e-4)
    model.replaced = 1.0
    changed = (model.synthetic(state, targets)[:, 0] - same).abs() > 1e-3
    assert value(changed.float().mean()) == pytest.approx(1 - 1 / 4**3, abs=0.02)


def test_sinkhorn_is_nearly_doubly_stochastic() -> None:
    shares = sinkhorn(torch.randn(2, 5, 5), 50)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shares.sum(2), torch.ones(2, 5), rtol=1e-4, atol=1e-4)


def test_permutations_use_every_column_once_and_the_largest_first() -> None:
    found = permutation(torch.rand(3, 6, 6))
    for row in found:
        assert sorted(row.tolist()) == list(range(6))
    clear = torch.eye(4)[torch.tensor([2, 0, 3, 1])][None]
    assert permutation(clear)[0].tolist() == [2, 0, 3, 1]
    contested = torch.tensor([[[0.9, 0.8], [0.95, 0.1]]])  # the second row takes the first column
    assert permutation(contested)[0].tolist() == [1, 0]


def test_alignment_finds_a_hidden_permutation() -> None:
    """Codes renamed: the embeddings of the old names that fit best are those of the same items."""
    torch.manual_seed(0)
    parts = {"mean": torch.zeros(2), "rotation": torch.eye(2), "codebooks": torch.zeros(1, 4, 2)}
    sizes = {**SIZES, "dropout": 0.0}
    codes = torch.arange(4)[:, None]
    model = VQRecModel(codes, 4, parts, **sizes, replaced=0.5)  # type: ignore[arg-type]
    torch.nn.init.orthogonal_(model.code_table.weight)
    chain = {
        "histories": torch.tensor([[0], [1], [2], [3]]),
        "lengths": torch.ones(4, dtype=torch.int64),
        "targets": torch.tensor([1, 2, 3, 0]),
    }
    teach = torch.optim.Adam([*model.encoder_parameters()], 1e-2)
    for _ in range(150):
        teach.zero_grad()
        loss = model.loss(chain)
        loss.backward()
        teach.step()
    assert value(loss) < 0.5
    renamed = torch.tensor([2, 0, 3, 1])
    model.codes[:4, 0] = renamed
    assert value(model.loss(chain)) > value(loss)
    alignment = Alignment(model, 5, 0.7)
    learn = torch.optim.Adam(alignment.parameters(), 0.05)
    for _ in range(150):
        learn.zero_grad()
        alignment(model, chain).backward()
        learn.step()
    table = alignment.table()
    assert sorted(table.sum(1).tolist()) == sorted(model.code_table.weight.sum(1).tolist())
    before = value(model.loss(chain))
    model.code_table.weight.data.copy_(table)
    assert value(model.loss(chain)) < min(before, 0.6)  # any rotation of the chain is as good as the names
