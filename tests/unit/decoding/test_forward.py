"""The decoder's arrangement of the T5 against the model's own plain path, and weights that change."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from catalex.decoding.forward import Past, encode, step
from catalex.decoding.weights import LENGTHS, weights_of
from catalex.models.t5 import T5, T5Options

TOKENS = torch.tensor([[5, 3, 9, 2, 11, 4], [7, 1, 0, 0, 0, 0], [6, 6, 2, 10, 0, 0]])


@pytest.fixture
def model() -> T5:
    torch.manual_seed(1)
    model = T5(12, T5Options(layers=2, hidden=16, feed_forward=24, heads=3, head_width=8)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # gains of 1 would hide a gain in the wrong place
                weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]])
@torch.no_grad()
def test_steps_equal_teacher_forcing_along_every_beam(model: T5, tokens: torch.Tensor) -> None:
    """Beams branch, swap and end; what each was fed is forced upon the model's training path."""
    weights = weights_of(model, torch.float32)
    encoded, past, users = encode(weights, tokens), Past([], []), len(tokens)
    fed = torch.zeros(users, 1, 0, dtype=torch.long)
    newest = torch.zeros(users, 1, dtype=torch.long)
    random = torch.Generator().manual_seed(0)
    kept = 1
    for beams in (4, 6, 3, 5):
        logits = step(weights, newest, past, encoded)
        for beam in range(kept):
            labels = torch.cat([fed[:, beam], torch.zeros(users, 1, dtype=torch.long)], dim=1)
            torch.testing.assert_close(logits[:, beam], model(tokens, labels)[:, -1], rtol=1e-4, atol=1e-4)
        parent = torch.randint(kept, (users, beams), generator=random)
        past.follow((parent + torch.arange(users).unsqueeze(1) * kept).flatten())
        newest = torch.randint(1, 12, (users, beams), generator=random)
        fed = torch.cat(
            [fed.gather(1, parent.unsqueeze(2).expand(-1, -1, fed.shape[2])), newest.unsqueeze(2)], 2
        )
        kept = beams


@torch.no_grad()
def test_weights_are_kept_until_one_changes(model: T5) -> None:
    first = weights_of(model, torch.float32)
    assert weights_of(model, torch.float32) is first
    assert weights_of(model, torch.bfloat16).head.dtype == torch.bfloat16
    model.decoder_norm.weight.mul_(2)
    changed = weights_of(model, torch.float32)
    torch.testing.assert_close(changed.head, first.head * 2)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    assert weights_of(model, torch.float32) is not changed


def test_an_optimiser_step_is_seen(model: T5) -> None:
    for fused in (False, True):
        before = weights_of(model, torch.float32).head.clone()
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        model.loss(TOKENS, TOKENS[:, :3]).backward()
        optimiser.step()
        assert not torch.equal(weights_of(model, torch.float32).head, before)


def test_nothing_keeps_a_model_alive(model: T5) -> None:
    other = T5(12, model.options)
    weights_of(other, torch.float32)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_position_biases_of_many_lengths_do_not_pile_up(model: T5) -> None:
    weights = weights_of(model, torch.float32)
    for length in range(1, LENGTHS + 10):
        bias = weights.bias_of_encoder(length)
        torch.testing.assert_close(bias, model._bias(length, causal=False))
    assert len(weights._encoder_biases) <= LENGTHS


@torch.no_grad()
def test_bf16_is_near(model: T5) -> None:
    start = torch.zeros(3, 1, dtype=torch.long)
    exact, near = (
        step(weights, start, Past([], []), encode(weights, TOKENS))
        for weights in (weights_of(model, torch.float32), weights_of(model, torch.bfloat16))
    )
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.1)
