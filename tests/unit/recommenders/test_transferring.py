"""UniSRec, VQ-Rec, MISSRec between domains; S3-Rec's and FDSA's options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.recommenders import load_recommender, make_recommender
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.sequential import SequentialRecommender
from catalex.recommenders.transferring import TransferringRecommender
from catalex.types import Ints
from support.worlds import content, domain, ring

SMALL = {"hidden": 16, "heads": 2, "inner": 24, "layers": 1, "batch_size": 32, "epochs": 2, "max_history": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "unisrec": {**SMALL, "experts": 2},
    "vqrec": {**SMALL, "codes": 4, "codebook_size": 8, "rounds": 2, "align_epochs": 1},
    "missrec": {**SMALL, "images": True},
}


def world(name: str, items: int, seed: int) -> RecommenderDomain:
    """A ring of items whose vectors lie on a circle, so that texts tell what comes next."""
    base = domain(ring(items=items), items=items, name=name)
    angle = 2 * np.pi * np.arange(items) / items
    circle = np.stack([np.cos(angle), np.sin(angle)], 1) * 3
    noise = np.random.default_rng(seed).normal(size=(items, 10)) * 0.1
    return replace(base, vectors=np.concatenate([circle, noise], 1).astype(np.float32))


BOOKS, TOYS, GAMES = world("books", 20, 0), world("toys", 24, 1), world("games", 15, 2)


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def make(name: str, **options: Any) -> TransferringRecommender:
    found = make_recommender({"name": name, **SETTINGS[name], **options}, name)
    assert isinstance(found, TransferringRecommender)
    return found


@pytest.fixture(scope="module")
def pretrained(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recommender = make(name)
    facts = recommender.fit([BOOKS, TOYS], seed=0, device="cpu")
    assert facts["mode"] == "pretrain"
    folder = tmp_path_factory.mktemp(name)
    recommender.save(folder)
    return folder


def loaded(folder: Path) -> TransferringRecommender:
    found = load_recommender(folder)
    assert isinstance(found, TransferringRecommender)
    return found


def renamed(one: RecommenderDomain, order: Ints) -> RecommenderDomain:
    """The same domain in which item ``order[i]`` is called i."""
    place = np.argsort(order)
    assert one.vectors is not None
    assert one.image_vectors is not None
    cases = one.validation
    histories = Histories(cases.histories.offsets, place[cases.histories.items])
    return replace(
        one,
        name=f"{one.name} renamed",
        training=Histories(one.training.offsets, place[one.training.items]),
        validation=replace(cases, histories=histories, targets=place[cases.targets]),
        vectors=one.vectors[order],
        image_vectors=one.image_vectors[order],
        attributes=None,
    )


# --- zero-shot ----------------------------------------------------------------------------------------------


def test_an_unseen_domain_is_ranked_without_training(name: str, pretrained: Path, tmp_path: Path) -> None:
    recommender = loaded(pretrained)
    recommender.bind(GAMES)
    assert recommender.options.mode == "inductive"
    scores = recommender.score(GAMES.validation.histories)
    assert scores.shape == (len(GAMES.validation), 15)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores[0])) > 5
    recommender.save(tmp_path)
    np.testing.assert_array_equal(loaded(tmp_path).score(GAMES.validation.histories), scores)


def test_binding_changes_no_shared_weight_and_can_be_undone(name: str, pretrained: Path) -> None:
    recommender = loaded(pretrained)
    recommender.bind(BOOKS)
    scores = recommender.score(BOOKS.validation.histories)
    recommender.bind(GAMES)
    recommender.bind(BOOKS)
    np.testing.assert_array_equal(recommender.score(BOOKS.validation.histories), scores)


@pytest.mark.parametrize("kind", ["unisrec", "vqrec"])
def test_names_of_items_mean_nothing_without_ids(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recommender = make(kind)
    recommender.fit([BOOKS, TOYS], seed=0, device="cpu")
    order = np.random.default_rng(0).permutation(15)
    recommender.bind(GAMES)
    scores = recommender.score(GAMES.validation.histories)
    other = renamed(GAMES, order)
    recommender.bind(other)
    np.testing.assert_allclose(
        recommender.score(other.validation.histories), scores[:, order], rtol=1e-3, atol=1e-3
    )


def test_what_two_domains_teach_is_of_use_in_a_third() -> None:
    """Vectors lie on the same circle everywhere: the next item is a step further."""
    recommender = make("unisrec", epochs=60, dropout=0.0, adaptor_dropout=0.0, learning_rate=3e-3)
    recommender.fit([BOOKS, TOYS], seed=0, device="cpu")
    recommender.bind(GAMES)
    ranks = recommender.ranks(GAMES.validation, 10)
    assert (ranks <= 4).mean() > 0.6  # 4 of 15 by chance


# --- fine-tuning --------------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_the_earlier_weights_and_keeps_the_transformer(
    name: str, pretrained: Path
) -> None:
    before = loaded(pretrained)
    recommender = make(name)
    recommender.start_from(pretrained)
    facts = recommender.fit([GAMES], seed=0, device="cpu")
    assert facts["mode"] == ("inductive" if name == "vqrec" else "transductive")
    assert facts["trained_parameters"] < facts["parameters"]
    assert set(recommender.split_ids) == {"books", "toys", "games"}
    old, new = before._fitted().encoder_parameters(), recommender._fitted().encoder_parameters()  # type: ignore[operator]
    assert len(old) == len(new) > 5
    assert all(torch.equal(one, other) for one, other in zip(old, new, strict=True))
    assert not all(
        torch.equal(value, before._fitted().state_dict().get(key, torch.empty(0)))
        for key, value in recommender._fitted().state_dict().items()
    )


def test_everything_is_trained_where_nothing_is_frozen(name: str, pretrained: Path) -> None:
    recommender = make(name, freeze=False)
    recommender.start_from(pretrained)
    facts = recommender.fit([GAMES], seed=0, device="cpu")
    assert facts["trained_parameters"] == facts["parameters"]


def test_fine_tuning_is_saved_with_what_it_was(name: str, pretrained: Path, tmp_path: Path) -> None:
    recommender = make(name, mode="inductive")
    recommender.start_from(pretrained)
    recommender.fit([GAMES], seed=0, device="cpu")
    recommender.save(tmp_path)
    again = loaded(tmp_path)
    assert again.options == recommender.options
    histories = GAMES.validation.histories
    np.testing.assert_array_equal(again.score(histories), recommender.score(histories))


def test_one_domain_can_be_pre_trained_on(name: str) -> None:
    facts = make(name, mode="pretrain").fit([BOOKS], seed=0, device="cpu")
    assert facts["mode"] == "pretrain"


def test_weights_of_another_size_are_refused(name: str, pretrained: Path) -> None:
    recommender = make(name, hidden=32)
    recommender.start_from(pretrained)
    with pytest.raises(CatalexError, match=r"do not fit.*found .*allowed"):
        recommender.fit([GAMES], seed=0, device="cpu")
    with pytest.raises(CatalexError, match=r"another kind"):
        make("unisrec" if name != "unisrec" else "vqrec").start_from(pretrained)


def test_a_killed_fine_tuning_with_alignment_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catalex.training import loop

    first = make("vqrec")
    first.fit([BOOKS, TOYS], seed=0, device="cpu")
    first.save(tmp_path / "first")

    def fine_tune(partial: Path | None) -> TransferringRecommender:
        recommender = make("vqrec", checkpoint_seconds=0.0, align_epochs=2)
        recommender.start_from(tmp_path / "first")
        recommender.fit([GAMES], seed=0, device="cpu", partial=partial)
        return recommender

    whole = fine_tune(None).score(GAMES.validation.histories)
    real, steps = loop.learning_rate, 0  # type: ignore[attr-defined]

    def dying(*values: Any, **options: Any) -> float:
        nonlocal steps
        steps += 1
        if steps in (2, 5):
            raise KeyboardInterrupt
        return real(*values, **options)

    monkeypatch.setattr(loop, "learning_rate", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fine_tune(tmp_path / "partial")
    np.testing.assert_array_equal(fine_tune(tmp_path / "partial").score(GAMES.validation.histories), whole)


# --- VQ-Rec's codes -----------------------------------------------------------------------------------------


def test_earlier_codebooks_can_be_kept(tmp_path: Path) -> None:
    first = make("vqrec")
    first.fit([BOOKS, TOYS], seed=0, device="cpu")
    first.save(tmp_path)
    own, earlier = make("vqrec"), make("vqrec", codebooks="earlier")
    for recommender in (own, earlier):
        recommender.start_from(tmp_path)
        recommender.fit([GAMES], seed=0, device="cpu")
    before = first._fitted().state_dict()["codebooks"]
    assert torch.equal(earlier._fitted().state_dict()["codebooks"], before)
    assert not torch.equal(own._fitted().state_dict()["codebooks"], before)


def test_codes_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(CatalexError, match=r"vqrec.codes: .*cut into that many.*found 5.*divisor of 12"):
        make("vqrec", codes=5).fit([BOOKS], seed=0, device="cpu")
    with pytest.raises(CatalexError, match=r"books: there are fewer items .*found 20; allowed: at least 64"):
        make("vqrec", codebook_size=64).fit([BOOKS], seed=0, device="cpu")


def test_item_ids_are_no_mode_of_vqrec() -> None:
    with pytest.raises(CatalexError, match=r"vqrec.mode"):
        make("vqrec", mode="transductive")


# --- MISSRec, FDSA, S3-Rec ----------------------------------------------------------------------------------


def test_missrec_works_with_texts_alone() -> None:
    recommender = make("missrec", images=False)
    recommender.fit([replace(BOOKS, image_vectors=None)], seed=0, device="cpu")
    assert recommender.needs == {"vectors"}
    with pytest.raises(CatalexError, match=r"books: the recommender needs image vectors"):
        make("missrec").fit([replace(BOOKS, image_vectors=None)], seed=0, device="cpu")


def test_missrec_mixes_domains_with_and_without_images(tmp_path: Path) -> None:
    """A domain without images comes with zeros of any width."""
    none = np.zeros((20, 1), np.float32)
    first = make("missrec")
    first.fit([replace(BOOKS, image_vectors=none), TOYS], seed=0, device="cpu")
    first.save(tmp_path)
    bare = replace(GAMES, image_vectors=np.zeros((15, 1), np.float32))
    second = make("missrec")
    second.start_from(tmp_path)
    second.fit([bare], seed=0, device="cpu")
    first.bind(bare)
    assert np.isfinite(first.score(GAMES.validation.histories)).all()


def test_training_options_may_stand_in_a_block_of_their_own() -> None:
    """As the blocks `pretrain` and `transfer` of a recipe lay them over the recommender's."""
    found = make("unisrec", training={"epochs": 7, "mode": "inductive"})
    assert (found.options.epochs, found.options.mode) == (7, "inductive")
    with pytest.raises(CatalexError, match="unknown key 'epochz'"):
        make("unisrec", training={"epochz": 7})


def test_missing_vectors_are_told(name: str) -> None:
    with pytest.raises(
        CatalexError, match=r"books: the recommender needs vectors. Run 'catalex embed' first"
    ):
        make(name, **({"images": False} if name == "missrec" else {})).fit(
            [replace(BOOKS, vectors=None)], seed=0, device="cpu"
        )


def plain(name: str, **options: Any) -> SequentialRecommender:
    small = {"hidden": 16, "layers": 1, "batch_size": 32, "epochs": 2, "max_history": 6}
    found = make_recommender({"name": name, **small, **options}, name)
    assert isinstance(found, SequentialRecommender)
    return found


def test_fdsa_reads_vectors_or_attributes() -> None:
    histories, other = BOOKS.validation.histories, content(20, seed=1)[0]
    for features, changed in (
        ("vectors", replace(BOOKS, vectors=other)),
        ("attributes", replace(BOOKS, attributes=Histories.from_lists([[item % 7] for item in range(20)]))),
    ):
        scores = []
        for one in (BOOKS, changed):
            recommender = plain("fdsa", features=features)
            recommender.fit([one], seed=0, device="cpu")
            scores.append(recommender.score(histories))
        assert not np.allclose(scores[0], scores[1])


def test_self_supervision_comes_first_and_can_be_left_out() -> None:
    with_it, without = plain("s3rec", pretrain_epochs=3, dropout=0.0), plain("s3rec", pretrain_epochs=0)
    facts = with_it.fit([BOOKS], seed=0, device="cpu")
    assert len(facts["pretrain_loss"]) == 1
    assert "pretrain_loss" not in without.fit([BOOKS], seed=0, device="cpu")
    with pytest.raises(CatalexError, match="needs attributes"):
        plain("s3rec").fit([replace(BOOKS, attributes=None)], seed=0, device="cpu")


def test_self_supervision_learns() -> None:
    losses = []
    for epochs in (1, 30):
        recommender = plain("s3rec", pretrain_epochs=epochs, dropout=0.0, pretrain_rate=0.01)
        losses.append(recommender.fit([BOOKS], seed=0, device="cpu")["pretrain_loss"][-1])
    assert losses[1] < 0.8 * losses[0]
