"""The encoder ``tfidf-svd``: latent semantic analysis of the catalogue's own words. No weights, fast.

tf-idf gives each item a sparse vector of its words; a truncated SVD keeps the directions that explain most of
the catalogue (Deerwester et al. 1990). Good for a first look and for tests; it knows nothing about words that
it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from catalex.artifacts import hash_json
from catalex.errors import user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.features.text import clean
from catalex.options import Options
from catalex.types import Floats

_REVISION = 1


class TfidfSvdOptions(Options):
    """How words become vectors."""

    width: int = Field(default=256, ge=1)
    """D. Where the catalogue allows fewer directions, the remaining components are zero, so D never varies.
    100 to 300 dimensions are the usual range of latent semantic analysis (Deerwester et al. 1990)."""

    phrase_words: int = Field(default=2, ge=1, le=3)
    """Longest run of words that counts as a term of its own."""

    minimum_items: int = Field(default=2, ge=1)
    """Terms of fewer items are left out: a word of one item cannot make it similar to another."""

    maximum_terms: int = Field(default=50_000, ge=1)
    """Most frequent terms that are kept; bounds time and memory."""

    seed: int = 0
    """Of the randomized SVD (Halko et al. 2011)."""


class TfidfSvd(ContentEncoder):
    """``(N, width)`` by tf-idf and SVD of the catalogue given to `fit`; no known word: zero vector."""

    Options = TfidfSvdOptions
    corpus_dependent = True

    def __init__(self, options: TfidfSvdOptions, device: str = "cpu") -> None:
        del device  # scikit-learn computes on the CPU
        try:
            import sklearn.feature_extraction.text
        except ImportError:
            raise user_error(
                "encoder 'tfidf-svd' needs scikit-learn", remedy="run: pip install 'catalex[text]'"
            ) from None
        self.options = options
        self._sklearn = sklearn
        self._vectorizer: Any = None
        self._directions: np.ndarray[Any, np.dtype[np.float64]] | None = None  # (terms, components)

    @property
    def fingerprint(self) -> str:
        return f"tfidf-svd-{hash_json([_REVISION, self.options.model_dump()])[:16]}"

    @property
    def width(self) -> int:
        return self.options.width

    def fit(self, items: Sequence[ItemContent]) -> None:
        """Learn terms, their weights and the directions from the catalogue's texts."""
        from sklearn.utils.extmath import randomized_svd

        texts = [clean(item.text) for item in items]
        counts = self._count(texts, self.options.minimum_items)
        if counts is None:  # tiny catalogues share no words
            counts = self._count(texts, 1)
        if counts is None:
            self._vectorizer, self._directions = None, np.zeros((0, 0))
            return
        rows, terms = counts.shape
        components = min(self.options.width, rows, terms)
        if terms == 1:  # one single term: it is its own direction
            self._directions = np.ones((terms, 1))
            return
        directions = randomized_svd(counts, components, n_iter=7, random_state=self.options.seed)[2]
        self._directions = np.asarray(directions, np.float64).T

    def _count(self, texts: list[str], minimum_items: int) -> Any:
        """Fit the vectorizer and return the tf-idf matrix ``(N, terms)``, or None when no term is left."""
        self._vectorizer = self._sklearn.feature_extraction.text.TfidfVectorizer(
            ngram_range=(1, self.options.phrase_words),
            min_df=minimum_items,
            max_features=self.options.maximum_terms,
            sublinear_tf=True,
            token_pattern=r"(?u)\b\w+\b",  # the default drops one-letter words, so short titles
        )
        try:
            return self._vectorizer.fit_transform(texts)
        except ValueError as error:
            if (
                "vocabulary" in str(error)
                or "no terms remain" in str(error).lower()
                or "max_df" in str(error)
            ):
                return None
            raise

    def encode(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None) -> Floats:
        """Vectors ``(N, D)``.

        Raises:
            CatalexError: When `fit` has not been called.
        """
        if self._directions is None:
            raise user_error(
                "encoder 'tfidf-svd' has not been fitted", remedy="call fit with the whole catalogue first"
            )
        vectors = np.zeros((len(items), self.width), np.float32)
        if len(items) and self._directions.size:
            counts = self._vectorizer.transform([clean(item.text) for item in items])
            projected = np.asarray(counts @ self._directions)
            norms = np.linalg.norm(projected, axis=1, keepdims=True)
            unit = np.divide(projected, norms, out=np.zeros_like(projected), where=norms > 1e-9)
            vectors[:, : unit.shape[1]] = unit
        if advance is not None:
            advance(len(items))
        return vectors
