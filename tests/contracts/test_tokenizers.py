"""One behaviour kit that every entry of the table of tokenizers passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.artifacts import read_json, write_json
from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.tokenizers import TOKENIZERS, fit_hash, load_tokenizer, make_tokenizer
from catalex.tokenizers.base import ContentTokenizer, Tokenizer, TokenizerDomain
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import CONFIG_FILE, WEIGHTS_FILE
from catalex.tokenizers.identifiers import identifier_version
from catalex.types import Floats

SETTINGS: dict[str, dict[str, Any]] = {
    "opq": {"levels": 4, "codebook_size": 8, "rounds": 5},
    "rqkmeans": {"codebook_size": 8, "iterations": 10},
    "rqvae": {
        "codebook_size": 8,
        "hidden": [16],
        "latent": 6,
        "batch": 64,
        "epochs": 6,
        "checkpoint_every": 2,
    },
    "unitok": {
        "codebook_size": 8,
        "levels": 3,
        "hidden": [16],
        "latent": 6,
        "batch": 64,
        "epochs": 6,
        "warmup_steps": 4,
        "information_every": 2,
        "checkpoint_every": 2,
    },
    "utgrec": {
        "encoder": {"name": "frozen", "width": 16},
        "root": 8,
        "leaf": 8,
        "code_width": 4,  # times 3 levels is WIDTH: content vectors can stand in for the encoder's rows
        "projection_hidden": 16,
        "learning_rate": 3e-3,
        "batch": 64,
        "epochs": 6,
        "quantizer_warmup": 4,
        "revive_every": 4,
        "checkpoint_seconds": 0.0,
    },
}
SETTINGS["lamia"] = {
    "encoder": {"name": "frozen", "width": 4},  # times 3 levels is WIDTH, as above
    "levels": 3,
    "codebook_size": 8,
    "restarts": 2,
    "iterations": 20,
    "training": {"epochs": 3, "batch_size": 60, "learning_rate": 1e-3, "checkpoint_seconds": 0.0},
}
SETTINGS["letter"] = {**SETTINGS["rqvae"], "levels": 3, "clusters": 3}
SETTINGS["tiger_m"] = {"text_width": 7, "components": 5, "quantizer": {**SETTINGS["rqvae"], "epochs": 20}}
SETTINGS["tiger_m separate"] = {**SETTINGS["tiger_m"], "name": "tiger_m", "fusion": "separate"}
SETTINGS["recgpt-fsq"] = {
    "levels": [3, 3],
    "heads": 1,
    "dropout": 0.1,
    "hidden": 16,
    "training": {"epochs": 20, "batch_size": 120, "learning_rate": 2e-2, "checkpoint_seconds": 0.0},
}
SETTINGS["unitok without names"] = {**SETTINGS["unitok"], "name": "unitok", "expert_token": "none"}
TYPING_ERRORS = {
    "utgrec": ("code_widht", "code_width"),
    "recgpt-fsq": ("levles", "levels"),
    "tiger_m": ("text_widht", "text_width"),
    "tiger_m separate": ("text_widht", "text_width"),
}
"""An unknown key and what was meant; the others have this one."""
SIZED = ("codebook_sise", "codebook_size")
WITHOUT_CODEBOOK = {"recgpt-fsq"}
"""Their codes are given, so that any number of items will do."""
BALANCED = sorted(name for name, kind in TOKENIZERS.items() if "balance" in kind.Options.model_fields)
WIDTH = 12


def domain(name: str, items: int = 150, seed: int = 0, width: int = WIDTH) -> TokenizerDomain:
    generator = np.random.default_rng(seed)
    centres = 2 * generator.normal(size=(10, width))
    vectors = (centres[generator.integers(0, 10, items)] + generator.normal(size=(items, width))).astype(
        np.float32
    )
    histories = [list(range(start, min(start + 6, items))) for start in range(0, items, 6)]
    content = [ItemContent(f"{name} {item}") for item in range(items)]
    collaborative = generator.normal(size=(items, 6)).astype(np.float32)  # as wide as the latents below
    training = Histories.from_lists(histories)
    return TokenizerDomain(name, vectors, training, f"split-{name}", content, collaborative)


DOMAINS = [domain("toys"), domain("office", 90, 1)]


def entry(name: str) -> str:
    """The entry of the table that these settings are for."""
    found: str = SETTINGS[name].get("name", name)
    return found


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def fitted(name: str) -> Tokenizer:
    return fit(name)


def fit(name: str, seed: int = 0, partial: Path | None = None, **options: Any) -> Tokenizer:
    tokenizer = make_tokenizer({"name": name, **SETTINGS[name], **options})
    tokenizer.fit(DOMAINS, seed=seed, device="cpu", partial=partial)
    return tokenizer


def vectors() -> Floats:
    return np.concatenate([d.vectors for d in DOMAINS])


def rows(tokenizer: Tokenizer, *domains: TokenizerDomain) -> Floats:
    """What the tokenizer quantizes of the items: their vectors, or what its own encoder makes of them."""
    if not isinstance(tokenizer, ContentTokenizer):
        return np.concatenate([d.vectors for d in domains or DOMAINS])
    found = []
    for one in domains or DOMAINS:
        assert one.content is not None
        found.append(tokenizer.represent(one.content, one.vectors, name=one.name, device="cpu"))
    return np.concatenate(found)


def test_every_entry_is_covered() -> None:
    assert {entry(name) for name in SETTINGS} == set(TOKENIZERS)


def test_the_code_space_is_known_before_training(name: str, fitted: Tokenizer) -> None:
    before = make_tokenizer({"name": name, **SETTINGS[name]}, domains=[d.name for d in DOMAINS]).space
    assert before == fitted.space
    assert len(before.sizes) == len(before.groups) == before.levels


def test_codes_are_in_range(fitted: Tokenizer) -> None:
    codes = fitted.encode(rows(fitted))
    assert codes.dtype == np.int32
    assert codes.shape == (240, fitted.space.levels)
    assert (codes >= 0).all()
    assert (codes < np.array(fitted.space.sizes)).all()
    assert (codes.max(0) > codes.min(0)).all()


def test_batch_agrees_with_single_bit_for_bit(fitted: Tokenizer) -> None:
    read = rows(fitted)
    whole = fitted.encode(read)
    prefix = whole[:, fitted.order[:1]]
    distances = fitted.distances(read, prefix)
    order = np.random.default_rng(0).permutation(240)
    np.testing.assert_array_equal(fitted.encode(read[order]), whole[order])
    for row in range(0, 240, 37):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(fitted.encode(read[one]), whole[one])
        np.testing.assert_array_equal(fitted.distances(read[one], prefix[one]), distances[one])
    assert fitted.encode(read[:0]).shape == (0, fitted.space.levels)


def test_encode_is_the_argmin_of_distances_level_by_level(fitted: Tokenizer) -> None:
    read = rows(fitted)
    codes = fitted.encode(read)
    assert sorted(fitted.order) == list(range(fitted.space.levels))
    for step, position in enumerate(fitted.order):
        distances = fitted.distances(read, codes[:, fitted.order[:step]])
        assert distances.dtype == np.float32
        assert distances.shape == (240, fitted.space.sizes[position])
        assert (distances >= 0).all()
        np.testing.assert_array_equal(distances.argmin(1), codes[:, position])


def test_decode_has_the_shape_of_the_vectors_and_beats_the_mean(fitted: Tokenizer) -> None:
    read = rows(fitted)
    decoded = fitted.decode(fitted.encode(read))
    assert decoded.shape == (240, WIDTH)
    assert decoded.dtype == np.float32
    assert np.square(read - decoded).sum() < np.square(read - read.mean(0)).sum()


def test_save_and_load_are_equal(name: str, fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is TOKENIZERS[entry(name)]
    assert loaded.space == fitted.space
    np.testing.assert_array_equal(rows(loaded), rows(fitted))
    codes = fitted.encode(rows(fitted))
    np.testing.assert_array_equal(loaded.encode(rows(fitted)), codes)
    np.testing.assert_array_equal(loaded.decode(codes), fitted.decode(codes))
    config = read_json(tmp_path / CONFIG_FILE)
    assert config["width"] == WIDTH
    assert config["domains"] == [
        {"name": "toys", "split_id": "split-toys"},
        {"name": "office", "split_id": "split-office"},
    ]
    again = tmp_path / "again"
    loaded.save(again)
    assert identifier_version(again, "reassign") == identifier_version(tmp_path, "reassign")
    assert identifier_version(again, "digit") != identifier_version(tmp_path, "reassign")


def test_folders_of_other_kinds_are_refused(fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    config = read_json(tmp_path / CONFIG_FILE)
    write_json(tmp_path / CONFIG_FILE, {**config, "format": 99})
    with pytest.raises(CatalexError, match="another format version"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / CONFIG_FILE, {**config, "name": "tokeniser"})
    with pytest.raises(CatalexError, match="unknown tokenizer 'tokeniser'"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / CONFIG_FILE, config)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"cut")
    with pytest.raises(CatalexError, match="damaged"):
        load_tokenizer(tmp_path)


def test_one_seed_one_result(name: str, fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "one")
    fit(name).save(tmp_path / "two")
    fit(name, seed=1).save(tmp_path / "other")
    weights = [(tmp_path / run / WEIGHTS_FILE).read_bytes() for run in ("one", "two", "other")]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_a_killed_training_resumes_to_the_same_result(
    name: str, fitted: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of its first reports of progress in turn, then left to finish."""
    from catalex.progress import Track

    advance = Track.advance
    for allowed in (1, 2, 4):

        def dying(self: Track, amount: int = 1, note: str | None = None, *, allowed: int = allowed) -> None:
            advance(self, amount, note)
            if self.count >= allowed and not self.name.startswith("read "):  # reading keeps nothing yet
                raise KeyboardInterrupt

        monkeypatch.setattr(Track, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(name, partial=tmp_path / "partial", **({"levels": 5} if name == "rqkmeans" else {}))
        monkeypatch.setattr(Track, "advance", advance)
    assert any((tmp_path / "partial").iterdir())
    options = {"levels": 5} if name == "rqkmeans" else {}
    fit(name, partial=tmp_path / "partial", **options).save(tmp_path / "resumed")
    fit(name, **options).save(tmp_path / "straight")
    resumed, straight = (tmp_path / run / WEIGHTS_FILE for run in ("resumed", "straight"))
    assert resumed.read_bytes() == straight.read_bytes()


def test_facts_of_a_resumed_training_are_those_of_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    def facts() -> Any:
        tokenizer = make_tokenizer({"name": name, **SETTINGS[name]})
        return tokenizer.fit(DOMAINS, seed=0, device="cpu", partial=tmp_path)

    first = facts()
    assert facts() == first
    assert first["utilisation"]


def test_identical_vectors_collide_and_conflict_handling_parts_them(fitted: Tokenizer) -> None:
    same = np.repeat(rows(fitted)[:1], 100, axis=0)
    codes = fitted.encode(same)
    assert len(np.unique(codes, axis=0)) == 1
    assert len(np.unique(resolve(fitted, same, codes), axis=0)) == 100


def test_training_on_identical_vectors_ends_with_finite_codes(name: str) -> None:
    same = replace(domain("same", 40), vectors=np.ones((40, WIDTH), np.float32))
    tokenizer = make_tokenizer({"name": name, **SETTINGS[name]})
    tokenizer.fit([same], seed=0, device="cpu")
    assert np.isfinite(tokenizer.decode(tokenizer.encode(rows(tokenizer, same)))).all()


@pytest.mark.parametrize("name", BALANCED)
def test_equal_balance_helps_the_small_domain(name: str) -> None:
    big, small = domain("big", 2000, 5), domain("small", 40, 6)
    errors = {}
    for balance in ("proportional", "equal"):
        tokenizer = make_tokenizer({"name": name, **SETTINGS[name], "balance": balance})
        tokenizer.fit([big, small], seed=0, device="cpu")
        decoded = tokenizer.decode(tokenizer.encode(small.vectors))
        errors[balance] = float(np.square(small.vectors - decoded).mean())
    assert errors["equal"] < errors["proportional"]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ([], "at least one domain"),
        ([domain("toys"), domain("none", 0)], "domain 'none': the domain has no items"),
        ([domain("tiny", 5)], r"fewer items than codes in a codebook \(found 5; allowed: at least 8 items\)"),
        (
            [domain("toys"), domain("wide", width=13)],
            r"domain 'wide': .* another width .*\(items, 12\) as in domain",
        ),
    ],
)
def test_domains_that_cannot_be_learned_from_are_refused(
    name: str, domains: list[TokenizerDomain], message: str
) -> None:
    if name in WITHOUT_CODEBOOK and "fewer items" in message:
        tokenizer = make_tokenizer({"name": name, **SETTINGS[name]})
        tokenizer.fit(domains, seed=0, device="cpu")
        assert len(tokenizer.encode(domains[0].vectors)) == len(domains[0].vectors)
        return
    with pytest.raises(CatalexError, match=message):
        make_tokenizer({"name": name, **SETTINGS[name]}).fit(domains, seed=0, device="cpu")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_named_with_domain_and_row(name: str, fitted: Tokenizer, bad: float) -> None:
    broken = domain("broken")
    broken.vectors[[7, 9], 3] = bad
    with pytest.raises(CatalexError, match=r"domain 'broken', row 7: .*NaN or infinite"):
        make_tokenizer({"name": name, **SETTINGS[name]}).fit([DOMAINS[0], broken], seed=0, device="cpu")
    with pytest.raises(CatalexError, match="row 7"):
        fitted.encode(broken.vectors)
    with pytest.raises(CatalexError, match="another width"):
        fitted.encode(vectors()[:, :5])


def test_an_untrained_tokenizer_says_so(name: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer({"name": name, **SETTINGS[name]})
    with pytest.raises(CatalexError, match="has not been trained"):
        tokenizer.encode(vectors())
    with pytest.raises(CatalexError, match="has not been trained"):
        tokenizer.save(tmp_path)


def test_settings_are_strict(name: str) -> None:
    wrong, meant = TYPING_ERRORS.get(name, SIZED)
    with pytest.raises(CatalexError, match=rf"recipe.tokenizer: unknown key '{wrong}'.*'{meant}'"):
        make_tokenizer({"name": entry(name), wrong: 4}, "recipe.tokenizer")
    with pytest.raises(CatalexError, match="key 'name' is missing"):
        make_tokenizer({"levels": 3})
    with pytest.raises(CatalexError, match=r"unknown tokenizer 'rqkmean'.*Did you mean 'rqkmeans'"):
        make_tokenizer({"name": "rqkmean"})


def test_the_fit_hash_sees_all_that_decides_the_result(name: str) -> None:
    base = fit_hash({"name": name}, DOMAINS, 0)
    assert base == fit_hash({"name": name}, DOMAINS, 0)
    others = [
        fit_hash({"name": name}, DOMAINS, 1),
        fit_hash({"name": name, "levels": 2}, DOMAINS, 0),
        fit_hash({"name": name}, DOMAINS[:1], 0),
        fit_hash({"name": name}, [DOMAINS[0], domain("office", 90, 2)], 0),
    ]
    assert len({base, *others}) == 5
