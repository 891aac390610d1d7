"""One behaviour kit for every trainable encoder of the table, in small variants."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from catalex.errors import CatalexError
from catalex.features import ItemContent
from catalex.features.trainable import (
    TRAINABLE_ENCODERS,
    ContentIndex,
    TrainableEncoder,
    make_trainable_encoder,
    trainable_encoder_options,
)
from catalex.types import Floats, Ints
from unit.features.tiny import picture, tiny_transformer

LEVELS, VECTORS_WIDTH = 3, 12
WIDE = 3
"""Allowed difference in units of 1e-5 times the size of a state: what float32 rounding explains."""

QWEN: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "text_config": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
    "vision_config": {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}

SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mini": lambda folder: {"name": "mini", "folder": str(folder), "max_tokens": 48},
    "mini, plain": lambda folder: {"name": "mini", "folder": str(folder), "start": "plain"},
    "mini, one layer frozen": lambda folder: {"name": "mini", "folder": str(folder), "frozen_layers": 1},
    "mini, images": lambda folder: {
        "name": "mini",
        "folder": str(folder),
        "max_tokens": 32,
        "images": "efficientnet-lite0",
        "image_tokens": 4,
    },
    "frozen": lambda folder: {"name": "frozen", "width": 16},
    "qwen2-vl": lambda folder: {
        "name": "qwen2-vl",
        "random_weights": True,
        "config": QWEN,
        "dtype": "fp32",
        "train": "full",
        "gradient_checkpointing": False,
        "max_image_pixels": 4 * 28 * 28,
        "max_tokens": 64,
    },
    "smolvl": lambda folder: {
        "name": "smolvl",
        "folder": str(tiny_llama(folder.parent / "llama")),
        "wording": "plain",
        "dtype": "fp32",
        "train": "full",
    },
}


def tiny_llama(folder: Path) -> Path:
    """A 2-layer random Llama with the tokenizer of `tiny_transformer`, saved as transformers saves it."""
    if folder.is_dir():
        return folder
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.parent / "tiny")
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("trainable") / "tiny")


def build(name: str, folder: Path, seed: int = 0, levels: int = LEVELS, **options: Any) -> TrainableEncoder:
    """A small encoder, in evaluation mode; skips where a package is missing."""
    pytest.importorskip("PIL", reason="images need Pillow")
    settings = {**SETTINGS[name](folder), **options}
    try:
        made = make_trainable_encoder(settings, "test", levels=levels, seed=seed, vectors_width=VECTORS_WIDTH)
    except CatalexError as error:
        if "pip install" in str(error):
            pytest.skip(f"a package is not installed: {error}")
        raise
    return made.eval()


@pytest.fixture(params=SETTINGS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(name: str, folder: Path) -> TrainableEncoder:
    return build(name, folder)


BOTH, NO_IMAGE, NO_TEXT, NOTHING, LONG, BAD_IMAGE = range(6)


def catalogue() -> list[ItemContent]:
    return [
        ItemContent("red kite with a long tail", picture((200, 30, 30))),
        ItemContent("frying pan"),
        ItemContent("", picture((30, 30, 200))),
        ItemContent(" \n"),
        ItemContent("kites and pans for red kitchens " * 3, picture((20, 160, 60))),
        ItemContent("pan", b"no image"),
    ]


def content_vectors() -> Floats:
    drawn = np.random.default_rng(0).normal(size=(6, VECTORS_WIDTH)).astype(np.float32)
    drawn[NOTHING] = 0.0
    return drawn / np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-9)


_INDEXES: WeakKeyDictionary[TrainableEncoder, ContentIndex] = WeakKeyDictionary()


def states(encoder: TrainableEncoder, *rows: int) -> torch.Tensor:
    """``(B, L, d)`` of the catalogue's items `rows` (all without any) in one batch."""
    if encoder not in _INDEXES:
        _INDEXES[encoder] = encoder.index(catalogue(), content_vectors())
    chosen: Ints = np.array(rows or range(6), np.int64)
    with torch.no_grad():
        result: torch.Tensor = encoder(_INDEXES[encoder].batch(chosen))
    return result


def assert_same(first: torch.Tensor, second: torch.Tensor) -> None:
    size = float(second.abs().max().clamp(min=1.0))
    torch.testing.assert_close(first, second, atol=WIDE * 1e-5 * size, rtol=0.0)


def test_every_entry_is_in_the_kit(folder: Path) -> None:
    assert {make(folder)["name"] for make in SETTINGS.values()} == set(TRAINABLE_ENCODERS)


def test_shape_type_and_finite_whatever_is_missing(encoder: TrainableEncoder) -> None:
    result = states(encoder)
    assert result.shape == (6, LEVELS, encoder.width)
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()


def test_items_differ_and_levels_differ(encoder: TrainableEncoder) -> None:
    result = states(encoder, BOTH, NO_IMAGE, LONG)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (result[first] - result[second]).abs().max() > 1e-3
        assert (result[:, first] - result[:, second]).abs().amax(1).min() > 1e-3


def test_companions_and_padding_change_nothing(encoder: TrainableEncoder) -> None:
    together = states(encoder)
    for row in range(6):
        assert_same(states(encoder, row)[0], together[row])
    assert_same(states(encoder, LONG, NOTHING, BOTH, BOTH), together[[LONG, NOTHING, BOTH, BOTH]])


def test_index_of_a_part_gives_the_same_inputs(encoder: TrainableEncoder) -> None:
    part = encoder.index(catalogue()[:2], content_vectors()[:2])
    with torch.no_grad():
        assert_same(encoder(part.batch(np.array([1, 0]))), states(encoder, 1, 0))


def test_same_seed_same_weights_other_seed_others(name: str, folder: Path, encoder: TrainableEncoder) -> None:
    before = torch.random.get_rng_state()
    again, other = build(name, folder), build(name, folder, seed=1)
    assert torch.equal(before, torch.random.get_rng_state()), "building an encoder must not consume the seed"
    assert torch.equal(states(again), states(encoder))
    assert again.fingerprint == encoder.fingerprint
    assert not torch.equal(states(other), states(encoder))
    assert {key: value.shape for key, value in other.saved().items()} == {
        key: value.shape for key, value in encoder.saved().items()
    }


def test_fingerprint_follows_levels(name: str, folder: Path, encoder: TrainableEncoder) -> None:
    fewer = build(name, folder, levels=2)
    assert fewer.fingerprint != encoder.fingerprint
    assert states(fewer, BOTH).shape[1] == 2


@pytest.mark.parametrize("rows", [range(6), [NO_IMAGE, NOTHING]], ids=["mixed", "without images"])
def test_gradient_reaches_every_saved_weight(name: str, folder: Path, rows: list[int]) -> None:
    """Also in a batch without images: processes of one training wait for each other's gradients."""
    encoder = build(name, folder).train()
    result = encoder(encoder.index(catalogue(), content_vectors()).batch(np.array(rows)))
    (result * torch.randn(result.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    gradients = {key: value.grad for key, value in encoder.named_parameters() if value.requires_grad}
    assert [key for key, value in gradients.items() if value is None] == []
    assert all(torch.isfinite(value).all() for value in gradients.values() if value is not None)
    assert gradients.keys() == encoder.saved().keys()
    codes = next((value for key, value in gradients.items() if key.endswith("codes")), None)
    for gradient in [codes] if codes is not None else list(gradients.values()):
        assert gradient is not None
        assert gradient.abs().amax(tuple(range(1, gradient.ndim))).min() > 0, "a level without gradient"


def test_saved_and_restored_is_bit_equal(name: str, folder: Path, encoder: TrainableEncoder) -> None:
    trained = build(name, folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in trained.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    stored = {key: value.clone() for key, value in trained.saved().items()}
    fresh = build(name, folder)
    assert not torch.equal(states(fresh), states(trained))
    fresh.restore(stored)
    assert torch.equal(states(fresh), states(trained))
    assert all(torch.equal(stored[key], value) for key, value in fresh.saved().items())
    assert torch.equal(states(build(name, folder)), states(encoder)), "encoders share no weights"


def test_wrong_weights_are_a_sentence_and_change_nothing(name: str, folder: Path) -> None:
    encoder = build(name, folder)
    before, stored = states(encoder), {key: value + 1 for key, value in encoder.saved().items()}
    key = sorted(stored)[0]
    less = {other: value for other, value in stored.items() if other != key}
    for wrong in (less, {**stored, "surplus": torch.zeros(1)}, {**stored, key: torch.zeros(1, 2, 3)}, {}):
        with pytest.raises(CatalexError, match=key if "surplus" not in wrong and wrong else "."):
            encoder.restore(wrong)
    assert torch.equal(states(encoder), before)


def test_index_knows_what_is_there(encoder: TrainableEncoder) -> None:
    index = encoder.index(catalogue(), content_vectors())
    assert len(index) == 6
    assert index.has_text.tolist() == [True, True, False, False, True, True]
    if encoder.reads_images:
        assert index.has_image.tolist() == [True, False, True, False, True, False]
        assert index.unreadable == 1
    else:
        assert not index.has_image.any()
        assert index.unreadable == 0


def test_text_targets_are_the_encoders_own_words(encoder: TrainableEncoder) -> None:
    index = encoder.index(catalogue(), content_vectors())
    assert (index.text is None) == (encoder.vocabulary is None)
    if index.text is None or encoder.vocabulary is None:
        return
    tokens, offsets = index.text.tokens, index.text.offsets
    assert offsets.shape == (7,)
    assert (offsets[0], offsets[-1]) == (0, len(tokens))
    assert ((np.diff(offsets) > 0) == index.has_text).all()
    assert tokens.min() >= 0
    assert tokens.max() < len(encoder.vocabulary)
    assert encoder.vocabulary.shape[1] == encoder.width


def test_advance_counts_every_item_and_nothing_is_allowed(encoder: TrainableEncoder) -> None:
    counts: list[int] = []
    encoder.index(catalogue(), content_vectors(), counts.append)
    assert sum(counts) == 6
    assert len(encoder.index([], np.zeros((0, VECTORS_WIDTH), np.float32))) == 0


def test_hostile_text_is_harmless_and_quick(encoder: TrainableEncoder) -> None:
    hostile = [
        "kite " * 20_000,
        "x" * 100_000,
        " " * 100_000,
        "凧 é\u0301 \u202e \ud800 \x00 🪁",
        "[SEP] <|im_end|>",
    ]
    began = time.monotonic()
    index = encoder.index([ItemContent(text) for text in hostile], content_vectors()[:5])
    with torch.no_grad():
        result = encoder(index.batch(np.arange(5)))
    assert time.monotonic() - began < 5.0
    assert torch.isfinite(result).all()
    assert not index.has_text[2]


def test_options_are_checked_without_weights(name: str, folder: Path) -> None:
    settings = SETTINGS[name](folder)
    kind = TRAINABLE_ENCODERS[settings["name"]]()
    assert isinstance(trainable_encoder_options(settings, "tokenizer.encoder"), kind.Options)
    with pytest.raises(CatalexError, match=r"tokenizer\.encoder: unknown key 'wdith'"):
        trainable_encoder_options({**settings, "wdith": 3}, "tokenizer.encoder")
