"""UniTok without the names of experts: the codes of "last", and what becomes of them without a name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from catalex.artifacts import read_json, write_json
from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import CONFIG_FILE, weights_hash
from catalex.tokenizers.health import TokenizedDomain, health
from catalex.tokenizers.unitok import UniTok
from catalex.tokenizers.unitok_options import UniTokOptions
from catalex.types import JSON, Codes, Floats

WIDTH, LEVELS, SIZE = 10, 3, 8


def domain(name: str, items: int, seed: int) -> TokenizerDomain:
    """A domain of its own region, with 12 clusters of its own."""
    generator = np.random.default_rng(seed)
    centres = 4 * generator.normal(size=WIDTH) + 1.5 * generator.normal(size=(12, WIDTH))
    vectors = centres[generator.integers(0, 12, items)] + 0.5 * generator.normal(size=(items, WIDTH))
    return TokenizerDomain(name, vectors.astype(np.float32), Histories.from_lists([[0, 1]]), f"split-{name}")


DOMAINS = [domain("toys", 160, 0), domain("office", 110, 1), domain("games", 70, 2)]
ALL = np.concatenate([domain.vectors for domain in DOMAINS])
UNSEEN = domain("yelp", 90, 7).vectors


def make(token: str) -> UniTok:
    settings = {"levels": LEVELS, "codebook_size": SIZE, "latent": 6, "batch": 96, "epochs": 10}
    return UniTok(UniTokOptions.parse({**settings, "expert_token": token}, "tokenizer"))


def fitted(token: str) -> UniTok:
    tokenizer = make(token)
    tokenizer.fit(DOMAINS, seed=0, device="cpu")
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> UniTok:
    return fitted("last")


@pytest.fixture(scope="module")
def unnamed() -> UniTok:
    return fitted("none")


def identifiers(tokenizer: UniTok, vectors: Floats) -> Codes:
    return resolve(tokenizer, vectors, tokenizer.encode(vectors))


def test_without_names_the_codes_are_the_same(tokenizer: UniTok, unnamed: UniTok) -> None:
    """Only what is written differs: weights, routing, codes and their distances are those of "last"."""
    assert unnamed.network is not None
    assert tokenizer.network is not None
    weights = tokenizer.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unnamed.network.state_dict().items())
    assert (unnamed.expert_position, unnamed.order) == (None, (0, 1, 2))
    for vectors in (ALL, UNSEEN):
        named, codes = tokenizer.encode(vectors), unnamed.encode(vectors)
        np.testing.assert_array_equal(codes, named[:, :LEVELS])
        for level in range(LEVELS):
            np.testing.assert_array_equal(
                unnamed.distances(vectors, codes[:, :level]),
                tokenizer.distances(vectors, named[:, tokenizer.order[: level + 1]]),
            )
        np.testing.assert_array_equal(unnamed.routing(vectors), tokenizer.routing(vectors))


def test_codes_without_names_are_decoded_by_the_expert_most_items_with_them_chose(
    tokenizer: UniTok, unnamed: UniTok
) -> None:
    named, codes = tokenizer.encode(ALL), unnamed.encode(ALL)
    guessed = np.empty(len(codes), np.int64)
    for row, own in enumerate(codes.tolist()):
        votes = Counter(named[(codes == own).all(1), LEVELS].tolist())
        guessed[row] = min(votes, key=lambda expert: (-votes[expert], expert))
    as_guessed = np.concatenate([codes, guessed[:, None]], axis=1).astype(np.int32)
    np.testing.assert_array_equal(unnamed.decode(codes), tokenizer.decode(as_guessed))
    assert 0.8 < (guessed == named[:, LEVELS]).mean() < 1, "some codes of these small codebooks are shared"
    assert unnamed.decode(unnamed.encode(UNSEEN[:0])).shape == (0, WIDTH)


def test_codes_without_names_move_from_the_last_one_on(unnamed: UniTok) -> None:
    """Identical vectors fill the places nearest to their codes, under their own expert; there are T^L."""
    first = DOMAINS[0].vectors[5:6]
    for count, kept in ((SIZE, 2), (60, 1), (SIZE**LEVELS, 0)):
        same = np.repeat(first, count, axis=0)
        result = identifiers(unnamed, same)
        assert len(np.unique(result, axis=0)) == count
        np.testing.assert_array_equal(result[:, :kept], unnamed.encode(same)[:, :kept])
    with pytest.raises(
        CatalexError, match=r"more items than identifiers \(found 513; allowed: at most 512\)"
    ):
        identifiers(unnamed, np.repeat(first, SIZE**LEVELS + 1, axis=0))


def test_a_folder_that_named_its_experts_does_not_pass_for_one_without(
    tokenizer: UniTok, unnamed: UniTok, tmp_path: Path
) -> None:
    """The configuration alone cannot be changed: `decode` would have nothing to go by."""
    tokenizer.save(tmp_path)
    config = read_json(tmp_path / CONFIG_FILE)
    config["options"]["expert_token"] = "none"
    write_json(tmp_path / CONFIG_FILE, config)
    with pytest.raises(CatalexError, match=r"array 'expert_memory' is missing.* Train the tokenizer again"):
        UniTok.load(tmp_path)
    unnamed.save(tmp_path / "unnamed")
    assert weights_hash(tmp_path) != weights_hash(tmp_path / "unnamed"), "identifiers are named by it"
    switched = make("none")
    switched.network, switched.normaliser = tokenizer.network, tokenizer.normaliser
    switched.training = tokenizer.training
    np.testing.assert_array_equal(switched.encode(ALL), unnamed.encode(ALL))
    with pytest.raises(CatalexError, match="codes alone cannot be decoded"):
        switched.decode(switched.encode(ALL))


def test_the_health_report_asks_the_router_for_the_experts(tokenizer: UniTok, unnamed: UniTok) -> None:
    def report(judge: UniTok) -> dict[str, JSON]:
        looked_at = []
        for one in DOMAINS:
            codes, few = judge.encode(one.vectors), Histories.from_lists([[0, 1, 2], [3, 4]])
            titles = [str(item) for item in range(len(codes))]
            cases = Cases(np.arange(2), few, np.array([5, 6]))
            after = resolve(judge, one.vectors, codes)
            looked_at.append(TokenizedDomain(one.name, one.vectors, codes, after, titles, few, cases))
        return health(judge, looked_at)

    named, found = report(tokenizer), report(unnamed)
    assert found["experts"] == named["experts"]
    assert found["information"] == named["information"]
    for one in DOMAINS:
        row, other = found["domains"][one.name], named["domains"][one.name]
        assert row["experts"] == other["experts"]
        assert len(row["levels"]) == LEVELS
        assert row["neighbours"]["prefix"] == row["neighbours"]["prefix_chosen"]
