"""Adaptation of frozen tokenizers to a domain that they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.artifacts import read_json, write_json
from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import TOKENIZERS, LatentTokenizer, TokenizerDomain, load_tokenizer, make_tokenizer
from catalex.tokenizers.adapt import METHODS, AdaptedTokenizer, AdaptOptions, adapt, kept_codes
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import CONFIG_FILE, WEIGHTS_FILE, weights_hash
from catalex.types import Floats

WIDTH = 12
SMALL: dict[str, dict[str, Any]] = {
    "rqkmeans": {"levels": 3, "codebook_size": 16},
    "rqvae": {"codebook_size": 16, "hidden": [16], "latent": 6, "batch": 64, "epochs": 20},
    "unitok": {"levels": 3, "codebook_size": 16, "hidden": [16], "latent": 6, "batch": 64, "epochs": 6},
}
SMALL["letter"] = {**SMALL["rqvae"], "levels": 3, "clusters": 3, "alpha": 0.0}
SMALL["unitok without names"] = {**SMALL["unitok"], "name": "unitok", "expert_token": "none"}
CASES = [
    ("rqkmeans", "rotate"),
    ("rqvae", "rotate"),
    ("letter", "rotate"),
    ("unitok", "rotate"),
    ("unitok", "grow"),
    ("unitok without names", "rotate"),
    ("unitok without names", "grow"),
]


def domain(name: str, items: int = 200, seed: int = 0, far: float = 0.0) -> TokenizerDomain:
    """Items in ten heaps; `far` moves them and presses them together, as another vocabulary of texts does."""
    generator = np.random.default_rng(seed)
    centres = 2 * generator.normal(size=(10, WIDTH))
    vectors = centres[generator.integers(0, 10, items)] + generator.normal(size=(items, WIDTH))
    scale = 0.3 if far else 1.0
    return TokenizerDomain(
        name, (scale * vectors + far).astype(np.float32), Histories.from_lists([[0, 1]]), f"split-{name}"
    )


SEEN = [domain("toys"), domain("games", seed=1)]
UNSEEN = domain("office", items=120, seed=2, far=2.0)


@pytest.fixture(scope="module")
def trained() -> dict[str, LatentTokenizer]:
    found = {}
    for name, settings in SMALL.items():
        tokenizer = make_tokenizer({"name": name, **settings}, domains=[d.name for d in SEEN])
        assert isinstance(tokenizer, LatentTokenizer)
        tokenizer.fit(SEEN, seed=0, device="cpu")
        found[name] = tokenizer
    return found


def items(vectors: Floats) -> TokenizerDomain:
    return TokenizerDomain("office", vectors, UNSEEN.training, "split")


def by_steps(tokenizer: AdaptedTokenizer, vectors: Floats) -> np.ndarray[Any, Any]:
    prefix = np.zeros((len(vectors), 0), np.int32)
    for _ in tokenizer.order:
        chosen = tokenizer.distances(vectors, prefix).argmin(1).astype(np.int32)
        prefix = np.concatenate([prefix, chosen[:, None]], axis=1)
    codes = np.empty_like(prefix)
    codes[:, list(tokenizer.order)] = prefix
    return codes


def test_every_tokenizer_with_latent_vectors_is_covered() -> None:
    covered = {settings.get("name", name) for name, settings in SMALL.items()}
    assert covered == {name for name, kind in TOKENIZERS.items() if issubclass(kind, LatentTokenizer)}
    assert set(METHODS) == {method for _, method in CASES}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_codes_fit_the_contract(trained: dict[str, LatentTokenizer], name: str, method: str) -> None:
    adapted = adapt(trained[name], UNSEEN, method, seed=0)
    codes = adapted.encode(UNSEEN.vectors)
    assert codes.dtype == np.int32
    assert (codes >= 0).all()
    assert (codes < np.array(adapted.space.sizes)).all()
    np.testing.assert_array_equal(codes, by_steps(adapted, UNSEEN.vectors))
    one_by_one = np.concatenate([adapted.encode(row[None]) for row in UNSEEN.vectors])
    np.testing.assert_array_equal(codes, one_by_one)
    again = adapt(trained[name], UNSEEN, method, seed=0)
    np.testing.assert_array_equal(codes, again.encode(UNSEEN.vectors))
    assert adapted.encode(UNSEEN.vectors[:0]).shape == (0, adapted.space.levels)
    identifiers = resolve(adapted, UNSEEN.vectors, codes)
    assert len(np.unique(identifiers, axis=0)) == len(codes)
    for position, code in enumerate(adapted.options.fixed):
        if code is not None:
            assert (identifiers[:, position] == code).all()


def latent_error(tokenizer: LatentTokenizer) -> float:
    """Error of residual quantization relative to the variance of the latent vectors, written out."""
    rest = latents = tokenizer.latents(UNSEEN.vectors)
    for book in tokenizer.part_for(latents).codebooks:
        rest = rest - book[torch.cdist(rest, book).argmin(1)]
    return float(rest.square().sum() / (latents - latents.mean(0)).square().sum())


@pytest.mark.parametrize(("name", "method"), CASES)
def test_adaptation_lowers_the_error_on_an_unseen_domain(
    trained: dict[str, LatentTokenizer], name: str, method: str
) -> None:
    base, adapted = trained[name], adapt(trained[name], UNSEEN, method, seed=0)
    assert latent_error(adapted) < 0.6 * latent_error(base)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_frozen_tokenizer_stays_as_it_is(
    trained: dict[str, LatentTokenizer], tmp_path: Path, name: str, method: str
) -> None:
    base = trained[name]
    base.save(tmp_path / "before")
    codes = [base.encode(d.vectors) for d in (*SEEN, UNSEEN)]
    adapt(base, UNSEEN, method, seed=0).save(tmp_path / "adapted")
    base.save(tmp_path / "after")
    hashes = {weights_hash(tmp_path / place) for place in ("before", "after", "adapted/base")}
    assert len(hashes) == 1
    for d, before in zip((*SEEN, UNSEEN), codes, strict=True):
        np.testing.assert_array_equal(base.encode(d.vectors), before)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_saved_and_loaded(
    trained: dict[str, LatentTokenizer], tmp_path: Path, name: str, method: str
) -> None:
    adapted = adapt(trained[name], UNSEEN, method, seed=3)
    adapted.save(tmp_path)
    config = read_json(tmp_path / CONFIG_FILE)
    assert config["name"] == "adapted"
    assert config["domains"] == [{"name": "office", "split_id": "split-office"}]
    assert (config["options"]["method"], config["options"]["seed"]) == (method, 3)
    assert config["options"]["settings"]["lloyd"] == 10
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, AdaptedTokenizer)
    assert (loaded.space, loaded.order) == (adapted.space, adapted.order)
    codes = adapted.encode(UNSEEN.vectors)
    np.testing.assert_array_equal(loaded.encode(UNSEEN.vectors), codes)
    np.testing.assert_array_equal(loaded.decode(codes), adapted.decode(codes))
    loaded.save(tmp_path / "again")
    assert weights_hash(tmp_path / "again") == weights_hash(tmp_path)


def test_weights_name_the_frozen_tokenizer_too(trained: dict[str, LatentTokenizer], tmp_path: Path) -> None:
    adapt(trained["rqkmeans"], UNSEEN, seed=0).save(tmp_path)
    trained["rqvae"].save(tmp_path / "base")
    with pytest.raises(CatalexError, match=r"base: this is not the tokenizer that was adapted"):
        load_tokenizer(tmp_path)


def test_damaged_folders_are_refused(trained: dict[str, LatentTokenizer], tmp_path: Path) -> None:
    adapted = adapt(trained["rqkmeans"], UNSEEN, seed=0)
    adapted.save(tmp_path)
    config = read_json(tmp_path / CONFIG_FILE)
    config["options"]["fixed"] = [None] * 4
    write_json(tmp_path / CONFIG_FILE, config)
    with pytest.raises(CatalexError, match=r"array 'codebook_3' is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(CatalexError, match="does not exist"):
        load_tokenizer(tmp_path)


def test_a_grown_expert_has_the_next_number(trained: dict[str, LatentTokenizer]) -> None:
    base = trained["unitok"]
    place = base.order[0]
    grown = adapt(base, UNSEEN, "grow", seed=0)
    assert grown.space.sizes[place] == base.space.sizes[place] + 1
    assert (grown.encode(UNSEEN.vectors)[:, place] == base.space.sizes[place]).all()
    torch.testing.assert_close(grown.latents(UNSEEN.vectors), base.latents(UNSEEN.vectors), rtol=0, atol=0)
    later = adapt(base, UNSEEN, "grow", seed=0, expert=5)
    assert later.space.sizes[place] == 6
    assert (later.encode(UNSEEN.vectors)[:, place] == 5).all()
    both = adapt(grown, domain("yelp", seed=4), "grow", seed=0)
    assert both.space.sizes[place] == base.space.sizes[place] + 2
    with pytest.raises(CatalexError, match=r"an expert has this number already \(found 1; allowed: at least"):
        adapt(base, UNSEEN, "grow", seed=0, expert=1)


@pytest.mark.parametrize("method", ["rotate", "grow"])
def test_codes_without_names_are_those_beside_names(trained: dict[str, LatentTokenizer], method: str) -> None:
    """An adapted domain has codebooks of its own, so there is nothing that a name would have to say."""
    named, unnamed = (
        adapt(trained[name], UNSEEN, method, seed=0) for name in ("unitok", "unitok without names")
    )
    assert unnamed.options.fixed == (None, None, None)
    assert unnamed.space == trained["unitok without names"].space, "a recommender needs no new token"
    codes = unnamed.encode(UNSEEN.vectors)
    np.testing.assert_array_equal(codes, named.encode(UNSEEN.vectors)[:, :3])
    np.testing.assert_array_equal(unnamed.decode(codes), named.decode(named.encode(UNSEEN.vectors)))
    again = adapt(unnamed, domain("yelp", seed=4), "grow", seed=0)
    assert again.space == unnamed.space


def test_an_expert_that_is_not_named_has_no_number(trained: dict[str, LatentTokenizer]) -> None:
    with pytest.raises(CatalexError, match=r"name no expert, so a new one has no number \(found 5\)"):
        adapt(trained["unitok without names"], UNSEEN, "grow", seed=0, expert=5)


def test_fixed_positions(trained: dict[str, LatentTokenizer]) -> None:
    adapted = adapt(trained["unitok"], UNSEEN, seed=0)
    place = adapted.order[0]
    code = adapted.options.fixed[place]
    assert code is not None
    found = adapted.distances(UNSEEN.vectors, np.zeros((120, 0), np.int32))
    assert found.shape == (120, adapted.space.sizes[place])
    assert found[:, code].max() == 0
    assert np.delete(found, code, axis=1).min() == 1
    codes = adapted.encode(UNSEEN.vectors)
    elsewhere = codes.copy()
    elsewhere[:, place] = (codes[:, place] + 1) % adapted.space.sizes[place]
    np.testing.assert_array_equal(adapted.decode(codes), adapted.decode(elsewhere))


def test_without_experts_nothing_grows(trained: dict[str, LatentTokenizer]) -> None:
    with pytest.raises(CatalexError, match=r"adds an expert, and this tokenizer has none\. Use method 'rot"):
        adapt(trained["rqkmeans"], UNSEEN, "grow", seed=0)


def test_an_adapted_tokenizer_is_not_trained(trained: dict[str, LatentTokenizer]) -> None:
    adapted = adapt(trained["rqkmeans"], UNSEEN, seed=0)
    with pytest.raises(CatalexError, match="already trained"):
        adapted.fit([UNSEEN], seed=0, device="cpu")


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("count", [1, 5])
def test_fewer_items_than_codes(trained: dict[str, LatentTokenizer], name: str, count: int) -> None:
    few = UNSEEN.vectors[:count]
    adapted = adapt(trained[name], items(few), seed=0)
    before = trained[name].part_for(trained[name].latents(few)).codebooks
    changed = [int((a != b).any(1).sum()) for a, b in zip(adapted.codebooks, before, strict=True)]
    assert all(number <= count for number in changed)
    assert len(np.unique(resolve(adapted, few, adapted.encode(few)), axis=0)) == count
    # a single item lies on its code vector after refinement, so that the latent vector survives
    if count == 1:
        found = sum(book[code] for book, code in zip(adapted.codebooks, free(adapted, few)[0], strict=True))
        torch.testing.assert_close(found, adapted.latents(few)[0], atol=1e-4, rtol=1e-4)


def free(tokenizer: AdaptedTokenizer, vectors: Floats) -> np.ndarray[Any, Any]:
    """Codes at the positions that are not fixed."""
    kept = [position for position in tokenizer.order if tokenizer.options.fixed[position] is None]
    return tokenizer.encode(vectors)[:, kept]


def test_identical_items_get_identifiers(trained: dict[str, LatentTokenizer]) -> None:
    same = np.repeat(UNSEEN.vectors[:1], 40, axis=0)
    adapted = adapt(trained["rqkmeans"], items(same), seed=0)
    codes = adapted.encode(same)
    assert len(np.unique(codes, axis=0)) == 1
    assert len(np.unique(resolve(adapted, same, codes), axis=0)) == 40
    np.testing.assert_allclose(adapted.decode(codes), same, atol=1e-4)
    assert len(np.unique(adapt(trained["unitok"], items(same), "grow", seed=0).encode(same), axis=0)) == 1


def test_bad_input_gets_a_sentence(trained: dict[str, LatentTokenizer]) -> None:
    base, broken = trained["rqkmeans"], UNSEEN.vectors.copy()
    broken[7, 3] = np.nan
    with pytest.raises(CatalexError, match=r"domain 'office', row 7: .* NaN"):
        adapt(base, items(broken), seed=0)
    with pytest.raises(CatalexError, match=r"another width .*found \(120, 5\); allowed: \(items, 12\)"):
        adapt(base, items(UNSEEN.vectors[:, :5]), seed=0)
    with pytest.raises(CatalexError, match="no items"):
        adapt(base, items(UNSEEN.vectors[:0]), seed=0)
    with pytest.raises(CatalexError, match=r"unknown method of adaptation 'rotat'.*Did you mean 'rotate'"):
        adapt(base, UNSEEN, "rotat", seed=0)
    with pytest.raises(CatalexError, match=r"found 5; allowed: at least 16 items.*Use method 'rotate'"):
        adapt(trained["unitok"], items(UNSEEN.vectors[:5]), "grow", seed=0)
    with pytest.raises(CatalexError, match=r"adapt\.balance.*found 2"):
        AdaptOptions.parse({"balance": 2}, "adapt")
    adapted = adapt(base, UNSEEN, seed=0)
    with pytest.raises(CatalexError, match="row 7"):
        adapted.encode(broken)
    with pytest.raises(CatalexError, match="another width"):
        adapted.distances(UNSEEN.vectors[:, :5], np.zeros((120, 0), np.int32))


def test_options_steer(trained: dict[str, LatentTokenizer]) -> None:
    def made(**values: Any) -> AdaptedTokenizer:
        return adapt(trained["rqkmeans"], UNSEEN, seed=0, options=AdaptOptions.parse(values, "adapt"))

    still = made(rounds=0)
    assert still.motion is not None
    assert torch.equal(still.motion.rotation, torch.eye(WIDTH))
    books = trained["rqkmeans"].part_for(torch.zeros(1, WIDTH)).codebooks
    unrefined = made(lloyd=0)
    assert all(torch.equal(a, b) for a, b in zip(unrefined.codebooks, books, strict=True))
    used = [len(np.unique(made(balance=b).encode(UNSEEN.vectors)[:, 0])) for b in (0, 1)]
    assert used[0] < used[1]
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(
            made(sample=10).encode(UNSEEN.vectors), made(sample=100).encode(UNSEEN.vectors)
        )


def test_decoding_moves_back(trained: dict[str, LatentTokenizer]) -> None:
    adapted = adapt(trained["rqkmeans"], UNSEEN, seed=0)
    lost = UNSEEN.vectors - adapted.decode(adapted.encode(UNSEEN.vectors))
    spread = UNSEEN.vectors - UNSEEN.vectors.mean(0)
    assert (lost**2).sum() / (spread**2).sum() == pytest.approx(latent_error(adapted), rel=1e-3)


def test_kept_codes() -> None:
    one = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int32)
    other = np.array([[1, 2], [3, 0], [5, 0], [0, 8]], np.int32)
    assert kept_codes(one, other) == [0.75, 0.5]
    assert kept_codes(one[:0], other[:0]) == [1.0, 1.0]
