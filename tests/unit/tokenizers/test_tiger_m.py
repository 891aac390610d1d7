"""TIGER_M: equal weight of both modalities, missing images, and TIGER where no image says anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import load_tokenizer, make_tokenizer
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.modalities import Modalities
from catalex.types import Floats

RQVAE: dict[str, Any] = {"codebook_size": 8, "hidden": [16], "latent": 6, "batch": 64, "epochs": 4}
TINY: dict[str, Any] = {"name": "tiger_m", "text_width": 8, "components": 5, "quantizer": RQVAE}


def fused(items: int = 150, text: int = 8, image: int = 6, missing: int = 30, scale: float = 1.0) -> Floats:
    """Random text and image blocks; the first `missing` items have no image."""
    random = np.random.default_rng(0)
    blocks = [random.standard_normal((items, width)) for width in (text, image)]
    blocks = [block / np.linalg.norm(block, axis=1, keepdims=True) for block in blocks]
    blocks[1][:missing] = 0
    return np.concatenate([blocks[0], scale * blocks[1]], axis=1).astype(np.float32)


def seen(vectors: Floats) -> TokenizerDomain:
    return TokenizerDomain("movies", vectors, Histories.from_lists([[0, 1]]), "split")


def fitted(vectors: Floats, **options: Any) -> Any:
    tokenizer = make_tokenizer({**TINY, **options})
    tokenizer.fit([seen(vectors)], seed=0, device="cpu")
    return tokenizer


@pytest.mark.parametrize("missing", [0, 30, 149])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_both_blocks_contribute_equal_variance_whatever_their_norms(missing: int, scale: float) -> None:
    vectors = torch.from_numpy(fused(missing=missing, scale=scale))
    modalities = Modalities.fit(vectors, 8, 5, flag=True)
    x = modalities(vectors)
    text, image = x.split(modalities.parts, dim=1)
    for block in (text, image):
        assert float(block.double().var(0, correction=0).sum()) == pytest.approx(
            1, rel=0.02 + (missing > 100)
        )
    assert torch.isfinite(x).all()
    torch.testing.assert_close(modalities.text(1e3 * vectors[:, :8]), text)


def test_the_blocks_are_standardised_and_decorrelated() -> None:
    vectors = torch.from_numpy(fused(missing=0))
    text = Modalities.fit(vectors, 8, 8, flag=True).text(vectors[:, :8]).double()
    covariance = text.T @ text / len(text)
    off = covariance - torch.diag(covariance.diagonal())
    assert float(off.abs().max()) < 1e-5
    assert (covariance.diagonal().diff() <= 1e-6).all()  # largest first


def test_a_missing_image_is_the_mean_image_and_a_flag() -> None:
    vectors = torch.from_numpy(fused())
    modalities = Modalities.fit(vectors, 8, 5, flag=True)
    image = modalities(vectors)[:, 5:]
    assert (image[:30, :-1] == 0).all()
    assert len(image[:, -1].unique()) == 2
    torch.testing.assert_close(image[:, :-1].mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    assert (Modalities.fit(vectors, 8, 5, flag=False)(vectors)[:, -1] == 0).all()


def test_without_any_image_identifiers_are_those_of_tiger_on_the_text_block() -> None:
    vectors = fused(missing=150)
    tokenizer = fitted(vectors)
    modalities = tokenizer.modalities
    text = modalities.text(torch.from_numpy(vectors[:, :8]))
    padded = np.concatenate([text.numpy(), np.zeros((150, 6), np.float32)], axis=1)
    tiger = make_tokenizer({"name": "rqvae", **RQVAE})
    tiger.fit([seen(padded)], seed=0, device="cpu")
    np.testing.assert_array_equal(tokenizer.encode(vectors), tiger.encode(padded))


@pytest.mark.parametrize("fusion", ["concatenate", "separate"])
@pytest.mark.parametrize("missing", [0, 1, 150])
def test_missing_images_never_give_nan(fusion: str, missing: int) -> None:
    vectors = fused(missing=missing)
    vectors[3] = 0  # neither text nor image
    tokenizer = fitted(vectors, fusion=fusion)
    codes = tokenizer.encode(vectors)
    assert np.isfinite(tokenizer.decode(codes)).all()
    assert np.isfinite(tokenizer.distances(vectors, codes[:, :1])).all()


def test_separate_quantizers_read_one_modality_each() -> None:
    vectors = fused()
    tokenizer = fitted(vectors, fusion="separate")
    other = vectors.copy()
    other[:, 8:] = other[::-1, 8:]
    codes, changed = tokenizer.encode(vectors), tokenizer.encode(other)
    np.testing.assert_array_equal(codes[:, :2], changed[:, :2])
    assert (codes[:, 2] != changed[:, 2]).any()


def test_the_average_is_that_of_the_unit_vectors_that_are_there(tmp_path: Path) -> None:
    vectors = fused(text=6, image=6)
    options = {"text_width": 6, "fusion": "average"}
    tokenizer = fitted(vectors, **options)
    mean = np.where(
        vectors[:, 6:].any(1, keepdims=True), (vectors[:, :6] + vectors[:, 6:]) / 2, vectors[:, :6]
    )
    tiger = make_tokenizer({"name": "rqvae", **RQVAE})
    tiger.fit([seen(mean.astype(np.float32))], seed=0, device="cpu")
    assert (tokenizer.encode(vectors) == tiger.encode(mean.astype(np.float32))).mean() > 0.99
    tokenizer.save(tmp_path)
    np.testing.assert_array_equal(load_tokenizer(tmp_path).encode(vectors), tokenizer.encode(vectors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_width": 14}, "no image block behind the text block.*encoder 'fusion'"),
        ({"fusion": "average"}, r"different widths have no mean.*\[8, 6\]"),
    ],
)
def test_vectors_without_two_blocks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        fitted(fused(), **options)


def test_some_level_is_left_for_the_text() -> None:
    with pytest.raises(CatalexError, match="no level is left for the text"):
        make_tokenizer({**TINY, "fusion": "separate", "image_levels": 3})
