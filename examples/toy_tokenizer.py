"""A tokenizer of one's own in one file: bins along a few directions.

Level l of an identifier says in which of K bins an item's vector lies along direction l. What a tokenizer
owes the rest of the package stands in `catalex.tokenizers.Tokenizer`; conflicts, vocabulary, trie,
recommenders and the report need nothing more. Inside the package this would be
``src/catalex/tokenizers/bins.py`` and one line in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from catalex import sample
from catalex.artifacts import read_parquet
from catalex.data.histories import Histories
from catalex.errors import user_error
from catalex.options import Options
from catalex.tokenizers import (
    TOKENIZERS,
    CodeSpace,
    Tokenizer,
    TokenizerDomain,
    load_tokenizer,
    make_tokenizer,
)
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.training_set import check_domains, check_vectors
from catalex.types import JSON, Codes, Floats


class BinsOptions(Options):
    """Settings; both are ours, small numbers for a small sample."""

    levels: int = Field(3, ge=1, le=8)
    """L, directions."""
    codebook_size: int = Field(16, ge=2)
    """K, bins along each."""


class Bins(Tokenizer):
    """The L principal directions of the vectors, each cut into K bins with equally many items."""

    Options: ClassVar[type[Options]] = BinsOptions
    name: ClassVar[str] = "bins"

    def __init__(self, options: BinsOptions) -> None:
        self.options = options
        self.training: Training | None = None
        self.arrays: dict[str, Floats] = {}

    @property
    def space(self) -> CodeSpace:
        return CodeSpace.of(self.options.levels, self.options.codebook_size)

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        width = check_domains(domains, self.options.codebook_size)
        vectors = np.concatenate([domain.vectors for domain in domains])
        mean = vectors.mean(0)
        axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][: self.options.levels]
        share = (np.arange(self.options.codebook_size) + 0.5) / self.options.codebook_size
        centres = np.quantile((vectors - mean) @ axes.T, share, axis=0)  # (K, L) the middle item of each bin
        self.arrays = {"mean": mean, "axes": axes, "centres": centres.astype(np.float32)}
        self.training = Training.of(domains, width)
        codes = self.encode(vectors)
        return {"utilisation": [len(set(column)) / self.options.codebook_size for column in codes.T.tolist()]}

    def encode(self, vectors: Floats) -> Codes:
        codes = np.zeros((len(vectors), self.options.levels), np.int32)
        for level in range(self.options.levels):
            codes[:, level] = self.distances(vectors, codes[:, :level]).argmin(1)
        return codes

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        level = prefix.shape[1]
        places = ((self._rows(vectors) - self.arrays["mean"]) * self.arrays["axes"][level]).sum(1)
        found: Floats = np.square(places[:, None] - self.arrays["centres"][:, level]).astype(np.float32)
        return found

    def decode(self, codes: Codes) -> Floats:
        self._trained()
        places = np.take_along_axis(self.arrays["centres"], codes.astype(np.int64), axis=0)
        found: Floats = (self.arrays["mean"] + places @ self.arrays["axes"]).astype(np.float32)
        return found

    def save(self, folder: Path) -> None:
        write_tokenizer(folder, self.name, self.options, self._trained(), self.arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        options, training, arrays = read_tokenizer(folder, cls.name)
        own = cls(BinsOptions.parse(options, str(folder)))
        own.training, own.arrays = training, arrays
        return own

    def _trained(self) -> Training:
        if self.training is None:
            raise user_error("the tokenizer has not been trained", place=self.name, remedy="call fit first")
        return self.training

    def _rows(self, vectors: Floats) -> Floats:
        check_vectors(vectors, self._trained().width, "vectors to tokenize")
        return np.asarray(vectors, np.float32)


def word_vectors(titles: Sequence[str], width: int = 32) -> Floats:
    """A poor man's encoder ``(N, width)``: the words of a title, hashed onto random directions."""
    directions = np.random.default_rng(0).standard_normal((997, width))
    words = [[sum(map(ord, word)) % 997 for word in title.lower().split()] for title in titles]
    return np.array([directions[own].sum(0) for own in words], dtype=np.float32)


def main() -> None:
    """Tokenize a domain of the packaged sample and look at what items share a prefix."""
    TOKENIZERS["bins"] = Bins  # the line in the table
    name = sample.DOMAINS[0]
    titles = read_parquet(sample.path() / name / "items.parquet")["title"].to_pylist()
    vectors = word_vectors(titles)
    tokenizer = make_tokenizer({"name": "bins"})
    tokenizer.fit([TokenizerDomain(name, vectors, Histories.from_lists([]), "none")], seed=0, device="cpu")
    codes = tokenizer.encode(vectors)
    unique = resolve(tokenizer, vectors, codes)
    print(f"{name}: {len(titles)} items, {len(np.unique(codes, axis=0))} different identifiers before")
    print(f"conflict handling and {len(np.unique(unique, axis=0))} after")
    for item in np.flatnonzero((unique[:, :2] == unique[0, :2]).all(1))[:5]:
        print(" ", tuple(unique[item].tolist()), titles[item])
    with TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        assert (load_tokenizer(Path(folder)).encode(vectors) == codes).all()


if __name__ == "__main__":
    main()
