"""tf-idf and SVD against the full decomposition, and catalogues too small for either."""

from __future__ import annotations

import numpy as np
import pytest

from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.features.tfidf_svd import TfidfSvd, TfidfSvdOptions

pytest.importorskip("sklearn", reason="tfidf-svd needs scikit-learn")

TEXTS = ["red kite", "blue kite", "red pan", "blue pan lid", "kite pan", "", "lid lid red"]


def fitted(texts: list[str], **options: object) -> tuple[TfidfSvd, np.ndarray]:
    encoder = TfidfSvd(TfidfSvdOptions.parse(options, "t"))
    items = [ItemContent(text) for text in texts]
    encoder.fit(items)
    return encoder, encoder.encode(items)


def test_with_all_directions_the_cosines_are_those_of_tfidf() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    _, vectors = fitted(TEXTS, width=40, phrase_words=1, minimum_items=1)
    exact = TfidfVectorizer(sublinear_tf=True).fit_transform(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, (exact @ exact.T).toarray(), atol=1e-5)


def test_with_few_directions_the_best_ones_are_kept() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    _, vectors = fitted(TEXTS, width=2, phrase_words=1, minimum_items=1)
    exact = TfidfVectorizer(sublinear_tf=True).fit_transform(TEXTS).toarray()
    projected = exact @ np.linalg.svd(exact)[2][:2].T
    norms = np.linalg.norm(projected, axis=1, keepdims=True)
    projected = np.divide(projected, norms, out=np.zeros_like(projected), where=norms > 0)
    np.testing.assert_allclose(vectors @ vectors.T, projected @ projected.T, atol=1e-4)


def test_shape_never_varies_and_empty_text_is_zero() -> None:
    _, vectors = fitted(TEXTS, width=32)
    assert vectors.shape == (7, 32)
    assert not vectors[5].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(vectors, 5, 0), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("texts", [[], [""], ["", "!!!"], ["kite"], ["kite", "pan"], ["a b", "a b"]])
def test_tiny_catalogues(texts: list[str]) -> None:
    _, vectors = fitted(texts, width=5)
    assert vectors.shape == (len(texts), 5)
    worded = [any(c.isalnum() for c in text) for text in texts]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.asarray(worded, float), atol=1e-5)


def test_unknown_words_give_the_zero_vector() -> None:
    encoder, _ = fitted(TEXTS, width=4)
    assert not encoder.encode([ItemContent("zebra")]).any()


def test_not_fitted_is_a_sentence() -> None:
    with pytest.raises(CatalexError, match="has not been fitted"):
        TfidfSvd(TfidfSvdOptions()).encode([ItemContent("kite")])
