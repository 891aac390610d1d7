"""What decoders may see, what counts in their losses, and that they can learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.models.bidirectional import BlockShape
from catalex.models.content_decoders import LossSum, TextDecoder, VectorDecoder, VisualDecoder

WIDTH, WORDS, LEVELS = 32, 41, 3
SHAPE = BlockShape(width=WIDTH, heads=4, kv_heads=2, hidden=64)


def stir(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))


def text_decoder(width: int = WIDTH) -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(SHAPE, torch.randn(WORDS, width), tokens_max=12, seed=5)
    stir(decoder)
    return decoder


def texts() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    h, tokens = torch.randn(4, LEVELS, WIDTH), torch.randint(WORDS, (4, 9))
    keep = torch.arange(9)[None, :] < torch.tensor([9, 5, 1, 0])[:, None]
    return h, tokens, keep


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDTH, 20])  # a head as wide as the block, and one behind a map
def test_text_loss_is_the_cross_entropy_of_the_logits(width: int) -> None:
    decoder, (h, tokens, keep) = text_decoder(width), texts()
    h.requires_grad_()
    total, count = decoder(h, tokens, keep)
    expected = torch.zeros(())
    for i, length in enumerate((9, 5, 1)):  # items one by one, without any padding
        expected = expected + F.cross_entropy(
            decoder.logits(h[i : i + 1], length)[0], tokens[i, :length], reduction="sum"
        )
    assert count.item() == 15
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    parts = [h, *decoder.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(total, parts), torch.autograd.grad(expected, parts), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_words_are_read_off_the_mask_positions_behind_the_codes() -> None:
    decoder, (h, *_) = text_decoder(), texts()
    masks = decoder.reader.mask.expand(4, 6, WIDTH)
    states = decoder.reader.norm(decoder.reader.block(torch.cat([h, masks], dim=1)))
    expected = states[:, [LEVELS + i for i in range(6)]] @ decoder.table.T
    assert torch.allclose(decoder.logits(h, 6), expected, atol=1e-5)


def test_no_token_is_ever_read() -> None:
    """Altering the gold token at j changes the loss at j only: a token is a target and never an input."""
    decoder, (h, tokens, _) = text_decoder(), texts()

    def at(position: int, words: Tensor) -> Tensor:
        """The loss of one position, while all are in the input."""
        everything = decoder(h, words, torch.ones_like(words, dtype=torch.bool)).total
        logits = decoder.logits(h, 9)
        others = [j for j in range(9) if j != position]
        rest = F.cross_entropy(logits[:, others].flatten(0, 1), words[:, others].flatten(), reduction="sum")
        return everything - rest

    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % WORDS
    for position in (0, 3, 5, 8):
        assert torch.allclose(at(position, tokens), at(position, changed), atol=1e-3)
    assert not torch.allclose(at(4, tokens), at(4, changed), atol=1e-1)


def test_padding_content_changes_nothing() -> None:
    decoder, (h, tokens, keep) = text_decoder(), texts()
    changed = torch.where(keep, tokens, torch.tensor(-100))
    wider = torch.cat([tokens, tokens[:, :3]], dim=1)
    longer = torch.cat([keep, torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    expected = decoder(h, tokens, keep)
    assert decoder(h, changed, keep) == expected
    assert decoder(h, wider, longer).total.item() == pytest.approx(expected.total.item(), rel=1e-5)


def test_positions_differ_and_all_depend_on_every_code() -> None:
    decoder, (h, *_) = text_decoder(), texts()
    logits = decoder.logits(h, 6)
    assert torch.cdist(logits[0], logits[0]).add(10 * torch.eye(6)).min() > 1e-3
    for level in range(LEVELS):
        other = h.clone()
        other[:, level] += 1
        assert ((decoder.logits(other, 6) - logits).abs().amax(-1) > 1e-4).all()


def test_items_without_text_count_for_nothing() -> None:
    decoder, (h, tokens, _) = text_decoder(), texts()
    h.requires_grad_()
    found = decoder(h, tokens, torch.zeros_like(tokens, dtype=torch.bool))
    found.mean().backward()
    assert found.total.item() == found.count.item() == 0
    assert not h.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


def test_head_is_a_copy_that_leaves_the_encoder_alone() -> None:
    words = torch.randn(WORDS, WIDTH)
    decoder = TextDecoder(SHAPE, words, tokens_max=12, seed=5)
    assert torch.equal(decoder.table, words)
    with torch.no_grad():
        decoder.table.add_(1)
    assert not torch.equal(decoder.table, words)
    assert decoder.table.requires_grad


def test_longer_texts_than_announced_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 12 tokens expected, found 13"):
        text_decoder()(torch.randn(1, 3, WIDTH), torch.zeros(1, 13, dtype=torch.long), torch.ones(1, 13) > 0)


def test_seed_fixes_initial_weights_and_nothing_else() -> None:
    words = torch.randn(WORDS, 20)
    makers = (
        lambda seed: TextDecoder(SHAPE, words, tokens_max=12, seed=seed),
        lambda seed: VisualDecoder(SHAPE, tokens=4, channels=2, seed=seed, width=16),
        lambda seed: VectorDecoder(WIDTH, 7, seed=seed),
    )
    for make in makers:
        state = torch.get_rng_state()
        first, second, third = (make(seed).state_dict() for seed in (1, 1, 2))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], third[name]) for name in first)


def test_text_can_be_learned_from_the_codes() -> None:
    torch.manual_seed(0)
    decoder = TextDecoder(SHAPE, torch.randn(WORDS, WIDTH), tokens_max=12, seed=0)
    h, tokens, keep = texts()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    first = decoder(h, tokens, keep).mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        decoder(h, tokens, keep).mean().backward()
        optimizer.step()
    assert decoder(h, tokens, keep).mean().item() < 0.15 < 1 < first
    same = torch.randn(1, LEVELS, WIDTH).expand(4, -1, -1)  # equal codes cannot tell the items apart
    assert decoder(same, tokens, keep).mean().item() > 1


# --- images -------------------------------------------------------------------------------------------------


def visual_decoder(loss: str, **more: bool) -> VisualDecoder:
    decoder = VisualDecoder(SHAPE, tokens=6, channels=4, seed=3, loss=loss, width=16, blocks=2, **more)  # type: ignore[arg-type]
    stir(decoder)
    return decoder


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(5, LEVELS, WIDTH), torch.randn(5, 6, 4)


def drawn(decoder: VisualDecoder, h: Tensor, latents: Tensor, present: Tensor) -> LossSum:
    """The loss under fixed noise."""
    found = decoder(h, latents, present, torch.Generator().manual_seed(7))
    assert isinstance(found, LossSum)
    return found


@pytest.mark.parametrize("loss", ["diffusion", "mse"])
def test_image_loss_adds_up_over_the_items_that_have_one(loss: str) -> None:
    decoder, (h, latents) = visual_decoder(loss), images()
    alone = [drawn(decoder, h, latents, torch.eye(5)[i]).total for i in range(5)]
    present = torch.tensor([1.0, 0, 1, 1, 0])
    broken = torch.where(present[:, None, None] > 0, latents, math.nan)
    found = drawn(decoder, h, broken, present)
    assert found.count.item() == 3
    assert found.total.item() == pytest.approx((alone[0] + alone[2] + alone[3]).item(), rel=1e-4)
    assert drawn(decoder, h, latents, present > 0) == found  # bools count too


@pytest.mark.parametrize("loss", ["diffusion", "mse"])
def test_batch_without_images_gives_zero_and_zero_gradients(loss: str) -> None:
    decoder, (h, latents) = visual_decoder(loss), images()
    h.requires_grad_()
    found = decoder(h, torch.full_like(latents, math.nan), torch.zeros(5))
    found.mean().backward()
    assert found.total.item() == found.count.item() == found.mean().item() == 0
    assert not h.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize("loss", ["diffusion", "mse"])
def test_image_loss_reaches_every_code_and_weight(loss: str) -> None:
    decoder, (h, latents) = visual_decoder(loss), images()
    h.requires_grad_()
    drawn(decoder, h, latents, torch.ones(5)).mean().backward()
    assert (h.grad.abs().sum(2) > 0).all()
    # a constant added to all keys changes no attention weight: that bias has no gradient but rounding
    assert all(p.grad.any() for name, p in decoder.named_parameters() if name != "reader.block.key.bias")


def test_mse_is_the_mean_over_tokens_and_channels() -> None:
    decoder, (h, latents) = visual_decoder("mse"), images()
    expected = F.mse_loss(decoder.sample(h), latents)
    assert decoder(h, latents, torch.ones(5)).mean().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["diffusion", "mse"])
def test_samples_have_the_shape_of_latents_and_follow_the_generator(loss: str) -> None:
    decoder, (h, _) = visual_decoder(loss), images()
    first, second, third = (
        decoder.sample(h, steps=5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (5, 6, 4)
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert torch.equal(first, third) == (loss == "mse")
    other = h.clone()
    other[0] += 1
    changed = decoder.sample(other, steps=5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(changed[1:], first[1:], atol=1e-5)
    assert not torch.allclose(changed[0], first[0], atol=1e-3)


def test_recomputing_changes_nothing() -> None:
    h, latents = images()
    found = [
        drawn(visual_decoder("diffusion", recompute=flag), h, latents, torch.ones(5))
        for flag in (False, True)
    ]
    assert torch.allclose(found[0].total, found[1].total)


def test_mse_learns_images_from_the_codes() -> None:
    h, latents = images()
    decoder = VisualDecoder(SHAPE, tokens=6, channels=4, seed=3, loss="mse")
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        decoder(h, latents, torch.ones(5)).mean().backward()
        optimizer.step()
    assert F.mse_loss(decoder.sample(h), latents) < 0.05 * latents.var()


# --- vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_vector_loss_is_what_it_says(loss: str) -> None:
    torch.manual_seed(0)
    decoder = VectorDecoder(WIDTH, 7, seed=0, loss=loss)  # type: ignore[arg-type]
    h, vectors = torch.randn(4, LEVELS, WIDTH), torch.randn(4, 7)
    present = torch.tensor([1.0, 1, 0, 1])
    guess = h[:, -1] @ decoder.map.weight.T + decoder.map.bias
    if loss == "cosine":
        each = 1 - (guess * vectors).sum(1) / (guess.norm(dim=1) * vectors.norm(dim=1))
    else:
        each = (guess - vectors).square().sum(1)
    found = decoder(h, torch.where(present[:, None] > 0, vectors, math.nan), present)
    assert found.total.item() == pytest.approx(each[present > 0].sum().item(), rel=1e-5)
    assert found.count.item() == 3


@pytest.mark.parametrize("loss", ["cosine", "squared"])
def test_no_vectors_or_a_zero_vector_give_finite_gradients(loss: str) -> None:
    decoder = VectorDecoder(WIDTH, 7, seed=0, loss=loss)  # type: ignore[arg-type]
    h = torch.randn(2, LEVELS, WIDTH, requires_grad=True)
    none = decoder(h, torch.full((2, 7), math.nan), torch.zeros(2))
    none.mean().backward()
    assert none.mean().item() == 0
    assert not h.grad.any()
    decoder(h, torch.zeros(2, 7), torch.ones(2)).mean().backward()
    assert h.grad.isfinite().all()


# --- all ----------------------------------------------------------------------------------------------------


def test_losses_stay_float32_under_autocast() -> None:
    h, tokens, keep = texts()
    picture, latents = images()
    exact, rough = [], []
    for found in (exact, rough):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=found is rough):
            cast = torch.bfloat16 if found is rough else torch.float32
            found += [
                text_decoder()(h.to(cast), tokens, keep),
                drawn(visual_decoder("diffusion"), picture.to(cast), latents, torch.ones(5)),
                drawn(visual_decoder("mse"), picture.to(cast), latents, torch.ones(5)),
                VectorDecoder(WIDTH, 4, seed=0)(picture.to(cast), latents[:, 0], torch.ones(5)),
            ]
    for a, b in zip(exact, rough, strict=True):
        assert b.total.dtype == b.count.dtype == torch.float32
        assert b.total.item() == pytest.approx(a.total.item(), rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_on_a_gpu_nothing_waits_for_the_host_and_values_agree(recompute: bool) -> None:
    h, tokens, keep = texts()
    picture, latents = images()
    present = torch.tensor([1.0, 0, 1, 1, 0])
    text, image = text_decoder(), visual_decoder("diffusion", recompute=recompute)
    plain = visual_decoder("mse")
    expected = [text(h, tokens, keep).total.item(), plain(picture, latents, present).total.item()]
    text, image, plain = text.cuda(), image.cuda(), plain.cuda()
    h, tokens, keep, picture, latents, present = (
        part.cuda() for part in (h, tokens, keep, picture, latents, present)
    )
    image(picture, latents, present)  # brings the schedule to the device
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [text(h, tokens, keep), plain(picture, latents, present), image(picture, latents, present)]
        sum(part.mean() for part in found).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert [part.total.item() for part in found[:2]] == pytest.approx(expected, rel=1e-3)
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in (*text.parameters(), *image.parameters())
    )


def test_decoders_of_the_paper_can_be_built_without_memory() -> None:
    shape = BlockShape.for_width(1536)
    with torch.device("meta"):
        text = TextDecoder(shape, torch.empty(151_936, 1536), tokens_max=1024, seed=0)
        image = VisualDecoder(shape, tokens=256, channels=16, seed=0)
    assert text.table.is_meta
    block = sum(p.numel() for p in text.reader.parameters())
    assert sum(p.numel() for p in text.parameters()) == 151_936 * 1536 + block
    # in 17 w; time 257 w + w (w + 1); condition 1537 w; blocks 3 (5 w^2 + 7 w); last 2 w (w + 1) + 32 (w + 1)
    w = 1024
    denoiser = (
        17 * w + 257 * w + w * (w + 1) + 1537 * w + 3 * (5 * w * w + 7 * w) + 2 * w * (w + 1) + 32 * (w + 1)
    )
    assert sum(p.numel() for p in image.parameters()) == block + denoiser
