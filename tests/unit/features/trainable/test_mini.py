"""``mini``: code tokens inside a BERT, against the transformer called in the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from catalex.errors import CatalexError
from catalex.features import ItemContent, make_encoder
from catalex.features.trainable import make_trainable_encoder
from catalex.features.trainable.mini import MiniEncoder, MiniOptions
from unit.features.tiny import tiny_transformer

TEXTS = ["red kite", "frying pan with a red lid", "", "kites pans kites pans kites pans kites pans kites"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("mini") / "tiny")


def build(folder: Path, levels: int = 3, **options: Any) -> MiniEncoder:
    return MiniEncoder(MiniOptions(folder=str(folder), **options), levels=levels, seed=0).eval()


def batch_of(encoder: MiniEncoder, texts: list[str] | None = None) -> dict[str, torch.Tensor]:
    texts = TEXTS if texts is None else texts
    return dict(encoder.index([ItemContent(text) for text in texts]).batch(np.arange(len(texts))))


@torch.no_grad()
def states(encoder: MiniEncoder, texts: list[str] | None = None) -> torch.Tensor:
    result: torch.Tensor = encoder(batch_of(encoder, texts))
    return result


@torch.no_grad()
def plain_pass(encoder: MiniEncoder, text: str) -> torch.Tensor:
    """All states ``(T + L, d)`` of one unpadded text, through the transformer's own forward function."""
    ids = encoder._tokenizer(text, truncation=True, max_length=encoder.max_tokens)["input_ids"]
    words = encoder.transformer.embeddings.word_embeddings(torch.tensor([ids]))
    positions = [*range(len(ids)), *range(encoder.max_tokens, encoder.max_tokens + encoder.levels)]
    result: torch.Tensor = encoder.transformer(
        inputs_embeds=torch.cat([words, encoder.codes[None]], 1), position_ids=torch.tensor([positions])
    ).last_hidden_state[0]
    return result


@pytest.mark.parametrize("start", ["plain", "mean"])
def test_equals_the_transformer_called_item_by_item(folder: Path, start: str) -> None:
    encoder = build(folder, max_tokens=20, start=start)
    for row, text in enumerate(TEXTS):
        everything = plain_pass(encoder, text)
        expected = everything[-3:]
        if start == "mean":
            expected = expected + everything[:-3].mean(0)
        torch.testing.assert_close(states(encoder)[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", [1, 16])
def test_wider_padding_changes_nothing(folder: Path, more: int) -> None:
    encoder = build(folder)
    narrow = batch_of(encoder)
    wide = {"tokens": F.pad(narrow["tokens"], (0, more), value=7), "real": F.pad(narrow["real"], (0, more))}
    with torch.no_grad():
        torch.testing.assert_close(encoder(wide), encoder(narrow), atol=1e-5, rtol=0.0)


def test_roberta_positions_begin_behind_padding(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=0,
        initializer_range=0.5,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    encoder = build(tmp_path, start="plain")
    assert encoder.max_tokens == 40 - 1 - 3
    batch = batch_of(encoder, ["red kite"])
    asked: list[torch.Tensor] = []
    encoder.transformer.embeddings.position_embeddings.register_forward_hook(
        lambda _, given, result: asked.append(given[0])
    )
    with torch.no_grad():
        encoder(batch)
        encoder.transformer(input_ids=batch["tokens"][:, batch["real"][0]])  # the library's own positions
    length = int(batch["real"].sum())
    assert torch.equal(asked[0][0, :length], asked[1][0])
    assert asked[0][0, -3:].tolist() == [37, 38, 39]


def test_frozen_layers_are_neither_trained_nor_saved(folder: Path) -> None:
    encoder = build(folder, frozen_layers=1).train()
    learning = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert learning == set(encoder.saved())
    assert "codes" in learning
    assert any(".layer.1." in name for name in learning)
    assert not any(".layer.0." in name or ".embeddings." in name for name in learning)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    encoder(batch_of(encoder)).square().sum().backward()
    optimizer.step()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in learning), name


def test_code_tokens_get_gradient_through_frozen_layers(folder: Path) -> None:
    encoder = build(folder, frozen_layers=2)
    encoder(batch_of(encoder)).square().sum().backward()
    assert encoder.codes.grad is not None
    assert encoder.codes.grad.abs().amax(1).min() > 0


def test_checkpointing_gives_the_same_gradients_with_dropout(folder: Path) -> None:
    gradients = []
    for again in (False, True):
        encoder = build(folder, gradient_checkpointing=again).train()
        torch.manual_seed(5)
        encoder(batch_of(encoder)).square().sum().backward()
        gradients.append([value.grad for value in encoder.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_dropout_in_training_only(folder: Path) -> None:
    encoder = build(folder)
    batch = batch_of(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(batch), encoder(batch))
        encoder.train()
        assert not torch.equal(encoder(batch), encoder(batch))


def test_bf16_autocast_stays_close_and_gives_float32(folder: Path) -> None:
    encoder = build(folder)
    exact = states(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        rough = states(encoder)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(rough.flatten(0, 1), exact.flatten(0, 1)).min() > 0.99


def test_code_tokens_begin_among_the_words(folder: Path) -> None:
    encoder = build(folder, levels=40)
    words, codes = encoder.vocabulary, encoder.codes.detach()
    assert not words.requires_grad
    centre = words.mean(0)
    assert float((codes.mean(0) - centre).norm() / words.std()) < 2.0  # sqrt(32 / 40) expected
    ratio = (codes - centre).norm(dim=1).mean() / (words - centre).norm(dim=1).mean()
    assert 0.8 < float(ratio) < 1.25


def test_text_is_cut_to_what_positions_allow(folder: Path) -> None:
    encoder = build(folder, max_tokens=500)
    assert encoder.max_tokens == 64 - 3
    index = encoder.index([ItemContent("kite " * 200)])
    assert index.batch(np.array([0]))["tokens"].shape == (1, 61)
    assert index.text.offsets.tolist() == [0, 59]


def test_targets_are_the_words_the_encoder_reads(folder: Path) -> None:
    encoder = build(folder)
    index = encoder.index([ItemContent("red kites"), ItemContent("")])
    assert encoder._tokenizer.convert_ids_to_tokens(index.text.tokens.tolist()) == ["red", "kite", "##s"]
    assert index.text.offsets.tolist() == [0, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_layers": 3}, r"more layers are frozen than there are \(found 3; allowed: 0 to 2\)"),
        ({"levels": 62}, r"62 code tokens and 0 image tokens leave no room for text"),
    ],
)
def test_impossible_sizes_are_a_sentence(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        build(folder, **options)


def test_other_kinds_of_transformer_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(CatalexError, match=r"cannot carry code tokens \(found 't5'; allowed: bert, roberta"):
        build(tmp_path)
    with pytest.raises(CatalexError, match=r"encoder\.folder: there is no such folder"):
        build(Path("/nowhere/at/all"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalexError, match=r"the configuration of the encoder cannot be read"):
        build(tmp_path / "empty")


def test_fingerprint_follows_weights_and_what_changes_results(folder: Path, tmp_path: Path) -> None:
    base = build(folder).fingerprint
    assert build(folder, gradient_checkpointing=True).fingerprint == base
    assert build(tiny_transformer(tmp_path / "same")).fingerprint == base
    others = {
        build(tiny_transformer(tmp_path / "other", seed=1)).fingerprint,
        build(folder, start="plain").fingerprint,
        build(folder, max_tokens=32).fingerprint,
        build(folder, frozen_layers=1).fingerprint,
        base,
    }
    assert len(others) == 5


def test_mean_start_keeps_the_meaning_of_minilm() -> None:
    """Before any training, likenesses of hidden states follow those of MiniLM's own vectors."""
    texts = [
        "Xbox wireless controller black",
        "PlayStation 5 DualSense controller",
        "Chef's knife 8 inch stainless steel",
        "Santoku knife 7 inch with wooden handle",
        "Yoga mat 6 mm non slip",
        "Acoustic guitar strings light gauge",
    ]
    items = [ItemContent(text) for text in texts]
    try:
        encoder = make_trainable_encoder({"name": "mini"}, "test", levels=3, seed=0).eval()
        vectors = make_encoder({"name": "minilm", "precision": "fp32"}, "test").encode(items)
    except CatalexError as error:
        pytest.skip(f"the weights are not installed: {error}")
    assert encoder.width == 384
    with torch.no_grad():
        hidden = F.normalize(encoder(encoder.index(items).batch(np.arange(6))), dim=-1)  # (6, 3, 384)
    pairs = np.triu_indices(6, 1)
    for level in range(3):
        likeness = (hidden[:, level] @ hidden[:, level].T).numpy()
        assert np.corrcoef(likeness[pairs], (vectors @ vectors.T)[pairs])[0, 1] > 0.6
        assert int(likeness[0, 1:].argmax()) == 0
        assert int(np.delete(likeness[2], 2).argmax()) == 2
