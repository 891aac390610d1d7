"""MISSRec: interests, the decoder against torch's own, fused scores against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from catalex.models.sequential.missrec import CrossBlock, MISSRecModel, Modality
from catalex.models.sequential.parts import EPSILON

N, S, H = 7, 4, 8
INTERESTS = [0, 1, 1, 0, 2, 2, 0]
HISTORIES = torch.tensor([[0, 3, 6, N], [1, 4, 5, 2], [2, N, N, N]])
LENGTHS = torch.tensor([3, 4, 1])


def model(*, images: bool = True, ids: bool = False) -> MISSRecModel:
    torch.manual_seed(0)
    text = Modality(torch.randn(N, 5), torch.randn(3, 5), torch.tensor(INTERESTS))
    seen = torch.randn(N, 3)
    seen[[2, 5]] = 0.0
    image = Modality(seen, torch.randn(2, 3), torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    modalities = [text, image] if images else [text]
    found = MISSRecModel(modalities, S, H, 1, 2, 12, 0.3, 0.07, ids=ids, apart=0.1)
    if ids:
        nn.init.normal_(found.table.weight)
    return found.eval()


# --- interests ----------------------------------------------------------------------------------------------


def test_every_interest_of_a_history_counts_once() -> None:
    found = model(images=False)
    memory, mask = found.interests_of(HISTORIES)
    assert mask.sum(1).tolist() == [1, 2, 1]
    for row, wanted in enumerate([{0}, {1, 2}, {1}]):
        expected = {tuple(found.adaptors[0](found._known_of(0).centres[n]).tolist()) for n in wanted}
        got = {tuple(vector.tolist()) for vector in memory[row][mask[row]]}
        assert all(
            any(sum(abs(x - y) for x, y in zip(g, e, strict=True)) < 1e-4 for e in expected) for g in got
        )
        assert len(got) == len(expected)


def test_what_an_item_lacks_is_no_interest() -> None:
    _, mask = model().interests_of(torch.tensor([[2, 5, N, N]]))
    assert mask[:, :S].sum() == 2
    assert mask[:, S:].sum() == 0


def test_histories_without_any_interest_stay_finite() -> None:
    found = model(images=False)
    found._known_of(0).present[:] = False
    _, mask = found.interests_of(HISTORIES)
    assert mask.sum(1).tolist() == [1, 1, 1]
    assert torch.isfinite(found.last(HISTORIES, LENGTHS)).all()


def test_padding_and_company_change_nothing() -> None:
    found = model()
    together = found.last(HISTORIES, LENGTHS)
    for row in range(3):
        alone = found.last(HISTORIES[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_the_target_is_outside_and_the_rest_is_read_both_ways() -> None:
    found = model()
    one, other = found(torch.tensor([[0, 1, 2]])), found(torch.tensor([[0, 1, 3]]))
    assert not torch.allclose(one[:, 0], other[:, 0])


# --- the decoder --------------------------------------------------------------------------------------------


def test_the_block_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = CrossBlock(H, 2, 12, 0.0).eval()
    theirs = nn.TransformerDecoderLayer(
        H, 2, 12, 0.0, "gelu", layer_norm_eps=EPSILON, batch_first=True
    ).eval()
    weights: dict[str, Tensor] = {
        "self_attn.in_proj_weight": ours.among.project.weight,
        "self_attn.in_proj_bias": ours.among.project.bias,
        "self_attn.out_proj.weight": ours.among.output.weight,
        "self_attn.out_proj.bias": ours.among.output.bias,
        "multihead_attn.in_proj_weight": torch.cat([ours.query.weight, ours.key_value.weight]),
        "multihead_attn.in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
        "multihead_attn.out_proj.weight": ours.output.weight,
        "multihead_attn.out_proj.bias": ours.output.bias,
        "linear1.weight": ours.among.widen.weight,
        "linear1.bias": ours.among.widen.bias,
        "linear2.weight": ours.among.narrow.weight,
        "linear2.bias": ours.among.narrow.bias,
        "norm1.weight": ours.among.attention_norm.weight,
        "norm1.bias": ours.among.attention_norm.bias,
        "norm2.weight": ours.norm.weight,
        "norm2.bias": ours.norm.bias,
        "norm3.weight": ours.among.feed_norm.weight,
        "norm3.bias": ours.among.feed_norm.bias,
    }
    theirs.load_state_dict(weights)
    x, memory = torch.randn(3, S, H), torch.randn(3, 5, H)
    keep = torch.arange(S) < torch.tensor([2, 4, 1])[:, None]
    known = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]
    expected = theirs(x, memory, tgt_key_padding_mask=~keep, memory_key_padding_mask=~known)
    torch.testing.assert_close(ours(x, keep, memory, known)[keep], expected[keep], rtol=1e-4, atol=1e-5)


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("sharpness", [0.0, 3.0])
def test_scores_are_fused_by_a_softmax_over_themselves(ids: bool, sharpness: float) -> None:
    found = model(ids=ids)
    found.fusion.data.fill_(sharpness)
    states = torch.randn(2, H)
    scores = found.logits(states).detach()
    cosine = torch.nn.functional.cosine_similarity
    for row in range(2):
        for item in range(N):
            text, image = (found._adapted(m, torch.tensor(item)).detach() for m in (0, 1))
            own = [cosine(states[row], text, dim=0)]
            if item not in (2, 5):
                own.append(cosine(states[row], image, dim=0))
            similar = torch.stack(own)
            fused = (torch.softmax(sharpness * similar, 0) * similar).sum()
            if ids:
                fused = (cosine(states[row], found.table.weight[item].detach(), dim=0) + 2 * fused) / 3
            assert float(scores[row, item]) == pytest.approx(float(fused) / 0.07, abs=2e-3)


def test_text_alone_is_a_plain_cosine() -> None:
    found, states = model(images=False), torch.randn(2, H)
    expected = torch.nn.functional.cosine_similarity(
        states[:, None], found.vectors_of(torch.arange(N)), dim=-1
    )
    torch.testing.assert_close(found.logits(states), expected / 0.07, rtol=1e-4, atol=1e-4)


def test_losses_have_finite_gradients_everywhere() -> None:
    found = model(ids=True).train()
    batch = {"histories": HISTORIES, "lengths": LENGTHS, "targets": torch.tensor([2, 5, 2])}
    (found.loss(batch) + found.contrast(batch)).backward()
    for name, parameter in found.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_regularisation_is_the_size_of_mean_interests() -> None:
    found = model()
    batch = {"histories": HISTORIES, "lengths": LENGTHS, "targets": torch.tensor([1, 3, 4])}
    with_it = float(found.loss(batch).detach())
    memory, known = found.interests_of(HISTORIES)
    for block in found.encoder:
        memory = block(memory, known)
    means = torch.stack([rows[mask].mean(0) for rows, mask in zip(memory, known, strict=True)])
    found.apart = 0.0
    difference = 0.1 * float(means.square().mean().detach())
    assert with_it - float(found.loss(batch).detach()) == pytest.approx(difference, rel=1e-3)
