"""One behaviour kit that every entry of the table of recommenders passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.artifacts import read_json, write_json
from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.recommenders import RECOMMENDERS, load_recommender, make_recommender
from catalex.recommenders.base import ABSENT, Ranking, Recommender, RecommenderDomain
from catalex.recommenders.popularity import CONFIG_FILE
from catalex.recommenders.sequential import SequentialRecommender
from catalex.training import loop
from support.worlds import SPACE, domain, identifiers, leave_one_out, ring, with_held_out

ITEMS = 20
TINY = {"layers": 1, "hidden": 16, "feed_forward": 32, "heads": 2, "head_width": 8}
SMALL = {"hidden": 16, "epochs": 3, "batch_size": 16, "max_history": 6, "learning_rate": 0.01}
MEMORISE = {"epochs": 100, "hidden": 32, "dropout": 0.0, "evaluate_every": 20}
MEMORISE_T5 = {
    "epochs": 200,
    "batch_size": 32,
    "evaluate_every": 100,
    "learning_rate": 0.005,
    "warmup_steps": 20,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "t5": {
        "model": TINY,
        "training": {"epochs": 3, "batch_size": 32, "evaluate_every": 1, "learning_rate": 0.01},
        "max_history": 6,
        "beam": ITEMS,
    },
    "recgpt": {
        "hidden": 16,
        "layers": 1,
        "heads": 2,
        "max_history": 6,
        "beam": ITEMS,
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "warmup_steps": 5},
    },
    "sasrec": SMALL,
    "gru4rec": {**SMALL, "inner": 16},
    "bert4rec": {**SMALL, "layers": 1},
    "fmlp": {**SMALL, "layers": 1},
    "bsarec": {**SMALL, "layers": 1},
    "hstu": {**SMALL, "layers": 1},
    "fdsa": {**SMALL, "layers": 1},
    "s3rec": {**SMALL, "layers": 1, "pretrain_epochs": 2, "pretrain_batch_size": 16},
    "unisrec": {**SMALL, "layers": 1, "inner": 32, "experts": 2},
    "vqrec": {**SMALL, "layers": 1, "inner": 32, "codes": 4, "codebook_size": 8, "rounds": 2},
    "missrec": {**SMALL, "heads": 2, "inner": 32, "images": True},
    "transitions": {},
    "popularity": {},
}
"""Tiny options of every entry. A block with ``training`` takes the options of training there."""

BY_HEART: dict[str, dict[str, Any]] = {
    "t5": {"model": {**TINY, "hidden": 32, "feed_forward": 64, "dropout": 0.0}, "training": MEMORISE_T5},
    "recgpt": {
        "hidden": 32,
        "dropout": 0.0,
        "training": {**SETTINGS["recgpt"]["training"], "epochs": 150, "evaluate_every": 50},
    },
    "gru4rec": {**MEMORISE, "inner": 32},
    "bert4rec": {**MEMORISE, "epochs": 250, "learning_rate": 0.005, "patience": 99},
    "hstu": {**MEMORISE, "input_dropout": 0.0, "width": 16},
    "s3rec": {**MEMORISE, "pretrain_epochs": 0},
    "unisrec": {**MEMORISE, "adaptor_dropout": 0.0},
    "missrec": {**MEMORISE, "batch_size": 32},
}
"""What it takes to learn a few users by heart, where it is not `MEMORISE`."""

TRAINED = tuple(name for name, kind in RECOMMENDERS.items() if kind.seeded)
trained_only = pytest.mark.parametrize("name", TRAINED, scope="module")
"""For what only recommenders with epochs and weights can show; the others count."""

RING = domain(ring())


def make(name: str, **training: Any) -> Recommender:
    """An untrained recommender; `training` goes where it keeps its training options."""
    block = {"name": name, **SETTINGS[name]}
    if "training" in block:
        block["training"] = {**block["training"], **training}
    elif name in TRAINED:
        block |= training
    return make_recommender(block, name, SPACE)


def fit(name: str, on: RecommenderDomain = RING, seed: int = 0, **training: Any) -> Recommender:
    recommender = make(name, **training)
    recommender.fit([on], seed=seed, device="cpu")
    return recommender


def weights(recommender: Recommender, folder: Path) -> dict[str, bytes]:
    """The bytes of everything learned."""
    recommender.save(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def assert_equal(one: Ranking, other: Ranking, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=sorted(RECOMMENDERS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def fitted(name: str) -> Recommender:
    return fit(name)


def test_every_entry_is_covered() -> None:
    assert set(SETTINGS) == set(RECOMMENDERS)


def test_facts_are_told_and_can_be_written_as_json(name: str) -> None:
    facts = dict(make(name).fit([RING], seed=0, device="cpu"))
    assert 0 <= facts["valid_ndcg@10"] <= 1
    assert (facts["parameters"] > 0) == (name in TRAINED)
    json.dumps(facts)


# --- rankings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, ITEMS, ITEMS + 7])
def test_rankings_keep_the_rules(fitted: Recommender, k: int) -> None:
    ranking = fitted.recommend(RING.validation.histories, k)
    assert ranking.items.shape == ranking.scores.shape == (len(RING.validation), k)
    assert ranking.items.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    for items, scores in zip(ranking.items, ranking.scores, strict=True):
        present = items[items != ABSENT]
        assert len(present) == min(k, ITEMS)  # never fewer than the catalogue can give
        assert len(set(present.tolist())) == len(present)
        assert ((present >= 0) & (present < ITEMS)).all()
        assert (items[len(present) :] == ABSENT).all()
        assert np.isfinite(scores[: len(present)]).all()
        assert (scores[len(present) :] == -np.inf).all()
        ahead, behind = scores[: len(present) - 1], scores[1 : len(present)]
        assert (ahead >= behind).all()
        tied = ahead == behind
        assert (present[:-1][tied] < present[1:][tied]).all()


def test_a_longer_list_begins_with_the_shorter_one(fitted: Recommender) -> None:
    histories = RING.validation.histories
    short, whole = fitted.recommend(histories, 4), fitted.recommend(histories, ITEMS)
    np.testing.assert_array_equal(short.items, whole.items[:, :4])


def test_no_histories_give_no_rows(fitted: Recommender) -> None:
    assert fitted.recommend(Histories.from_lists([]), 5).items.shape == (0, 5)


def test_ranks_are_places_in_the_list(fitted: Recommender) -> None:
    whole = fitted.recommend(RING.validation.histories, ITEMS)
    ranks = fitted.ranks(RING.validation, ITEMS)
    scores = np.take_along_axis(whole.scores, whole.ranks(RING.validation.targets)[:, None] - 1, axis=1)
    worst = (whole.scores >= scores).sum(axis=1)  # an item that scores like the target stands before it
    np.testing.assert_array_equal(ranks, worst)


def without(cases: Cases) -> list[list[int]]:
    """For each case a few items: of the history, and two that would stand high in anybody's list."""
    return [sorted({*cases.histories[row][:3].tolist(), row % ITEMS, 4}) for row in range(len(cases))]


def test_excluded_items_never_come_out_and_change_no_order(fitted: Recommender) -> None:
    histories, gone = RING.validation.histories, without(RING.validation)
    whole = fitted.recommend(histories, ITEMS)
    found = fitted.recommend(histories, ITEMS, Histories.from_lists(gone))
    for row, items in enumerate(gone):
        kept = [item for item in whole.items[row].tolist() if item not in items]
        assert found.items[row].tolist() == [*kept, *[ABSENT] * len(items)]
        assert (found.scores[row, len(kept) :] == -np.inf).all()
    few = fitted.recommend(histories, 3, Histories.from_lists(gone))
    np.testing.assert_array_equal(few.items, found.items[:, :3])


def test_ranks_count_only_what_is_not_excluded(fitted: Recommender) -> None:
    cases, gone = RING.validation, without(RING.validation)
    ranks = fitted.ranks(cases, ITEMS, Histories.from_lists(gone))
    whole = fitted.recommend(cases.histories, ITEMS)
    for row, (items, target) in enumerate(zip(gone, cases.targets.tolist(), strict=True)):
        scores = dict(zip(whole.items[row].tolist(), whole.scores[row].tolist(), strict=True))
        ahead = [item for item, score in scores.items() if score >= scores[target] and item not in items]
        assert ranks[row] == (0 if target in items else len(ahead))


def test_where_everything_is_excluded_nothing_is_recommended(fitted: Recommender) -> None:
    everything = Histories.from_lists([list(range(ITEMS)), []])
    found = fitted.recommend(Histories.from_lists([[1, 2], [1, 2]]), 4, everything)
    assert (found.items[0] == ABSENT).all()
    assert (found.items[1] != ABSENT).all()


# --- independence -------------------------------------------------------------------------------------------


def test_batches_and_padding_change_nothing(fitted: Recommender) -> None:
    histories = Histories.from_lists([[3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8], [19, 0, 1, 2, 3], [3]])
    together = fitted.recommend(histories, 8)
    for row in range(len(histories)):
        alone = fitted.recommend(histories.take(np.array([row])), 8)
        assert_equal(alone, Ranking(together.items[[row]], together.scores[[row]]), tolerance=1e-5)
    order = np.array([4, 2, 0, 3, 1])
    moved = fitted.recommend(histories.take(order), 8)
    assert_equal(moved, Ranking(together.items[order], together.scores[order]), tolerance=1e-5)


def test_only_the_latest_items_are_read(fitted: Recommender) -> None:
    long = Histories.from_lists([[9, 17, 4, 4, 11, 1, 2, 3, 4, 5, 6]])
    assert_equal(fitted.recommend(long, 8), fitted.recommend(long.latest(6), 8), tolerance=1e-5)


def test_recommending_changes_nothing(fitted: Recommender) -> None:
    histories = RING.validation.histories
    assert_equal(fitted.recommend(histories, 5), fitted.recommend(histories, 5))


@pytest.mark.parametrize("length", [1, 2])
def test_a_short_history_is_enough(fitted: Recommender, length: int) -> None:
    found = fitted.recommend(Histories.from_lists([[7, 8][:length]]), 5)
    assert len(set(found.items[0].tolist()) - {ABSENT}) == 5


def test_no_state_knows_what_comes_later(fitted: Recommender) -> None:
    """Where every position is trained to predict its next item, it must not have seen it."""
    if not isinstance(fitted, SequentialRecommender) or fitted.examples != "windows":
        pytest.skip("predicts at the end of a prefix, or what is masked")
    assert fitted.model is not None
    before = torch.arange(6)[None].repeat(2, 1)
    after = before.clone()
    after[:, 4:] += 7
    with torch.no_grad():
        one, two = fitted.model(before), fitted.model(after)
    torch.testing.assert_close(one[:, :4], two[:, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(one[:, 4:], two[:, 4:])


# --- training -----------------------------------------------------------------------------------------------


def test_one_seed_gives_one_result(name: str, fitted: Recommender, tmp_path: Path) -> None:
    first, again = weights(fitted, tmp_path / "first"), weights(fit(name), tmp_path / "again")
    assert first == again
    other = weights(fit(name, seed=1), tmp_path / "other")
    assert (first == other) == (name not in TRAINED)


def test_save_and_load_are_equal(fitted: Recommender, tmp_path: Path) -> None:
    fitted.save(tmp_path / "a")
    loaded = load_recommender(tmp_path / "a")
    assert type(loaded) is type(fitted)
    assert loaded.split_ids == fitted.split_ids == {"ring": RING.split_id}
    histories = RING.validation.histories
    assert_equal(loaded.recommend(histories, 12), fitted.recommend(histories, 12))
    assert weights(loaded, tmp_path / "b") == weights(fitted, tmp_path / "c")


CHANGED = tuple(name for name, kind in RECOMMENDERS.items() if getattr(kind, "earlier", {}))


@pytest.mark.parametrize("name", CHANGED, scope="module")
def test_files_from_before_an_option_was_there_are_read_as_they_were_meant(name: str, tmp_path: Path) -> None:
    kind = RECOMMENDERS[name]
    assert issubclass(kind, SequentialRecommender)
    before = make(name, **kind.earlier)
    before.fit([RING], seed=0, device="cpu")
    before.save(tmp_path)
    config = read_json(tmp_path / CONFIG_FILE)
    own = {option: config["options"].pop(option) for option in kind.earlier}
    assert own == kind.earlier
    write_json(tmp_path / CONFIG_FILE, config)
    histories = RING.validation.histories
    expected = before.recommend(histories, ITEMS)
    assert_equal(load_recommender(tmp_path).recommend(histories, ITEMS), expected)
    config["options"] |= {option: kind.Options.model_fields[option].default for option in kind.earlier}
    write_json(tmp_path / CONFIG_FILE, config)  # with today's defaults they would answer otherwise
    today = load_recommender(tmp_path).recommend(histories, ITEMS)
    assert not np.allclose(today.scores, expected.scores)


def test_held_out_items_teach_nothing(name: str, tmp_path: Path) -> None:
    """Other validation and test items leave every learned byte as it was (one epoch: nothing to choose)."""
    split = ring()
    random = np.random.default_rng(5).integers(0, ITEMS, len(split.all.items))
    other = with_held_out(split, random)
    assert other.split_id != split.split_id
    learned = weights(fit(name, domain(split), epochs=1), tmp_path / "one")
    assert weights(fit(name, domain(other), epochs=1), tmp_path / "two") == learned


@trained_only
def test_validation_chooses_the_epoch_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Training that stops at the best epoch of a long run ends at the same bytes."""
    recommender = make(name, epochs=4, schedule="constant")
    best = recommender.fit([RING], seed=0, device="cpu")["best_epoch"]
    short = fit(name, epochs=best, schedule="constant")
    assert weights(short, tmp_path / "short") == weights(recommender, tmp_path / "long")


class KilledError(Exception):
    pass


@trained_only
@pytest.mark.parametrize("kill_at", [2, 6])
def test_a_killed_training_ends_at_the_same_weights(
    name: str, fitted: Recommender, kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def dying(*values: Any, **options: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            raise KilledError
        return real(*values, **options)

    real = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", dying)
    with pytest.raises(KilledError):
        make(name, checkpoint_seconds=0.0).fit([RING], seed=0, device="cpu", partial=tmp_path / "partial")
    assert (tmp_path / "partial").is_dir()
    again = make(name, checkpoint_seconds=0.0)
    again.fit([RING], seed=0, device="cpu", partial=tmp_path / "partial")
    assert weights(again, tmp_path / "again") == weights(fitted, tmp_path / "whole")


def test_users_without_training_items_change_nothing(name: str, fitted: Recommender, tmp_path: Path) -> None:
    empty = np.insert(RING.training.offsets, 5, RING.training.offsets[5])
    more = replace(RING, training=Histories(np.append(empty, empty[-1]), RING.training.items))
    assert more.training.lengths[5] == more.training.lengths[-1] == 0
    assert weights(fit(name, more), tmp_path / "more") == weights(fitted, tmp_path / "same")


def test_items_that_nobody_used_can_still_be_ranked(name: str) -> None:
    """The catalogue may hold items without any interaction."""
    larger = domain(ring(), items=ITEMS + 9, codes=identifiers(ITEMS + 9))
    recommender = fit(name, larger, epochs=1)
    found = recommender.recommend(Histories.from_lists([[3, 4]]), ITEMS + 9)
    assert sorted(found.items[0].tolist()) == list(range(ITEMS + 9))


@trained_only
def test_32_users_can_be_learned_by_heart(name: str) -> None:
    """Sequences without any pattern: only memory can give back the next item."""
    random = np.random.default_rng(0)
    sequences = [random.permutation(ITEMS)[:6].tolist() for _ in range(32)]
    split = leave_one_out(sequences)
    training = split.training
    seen = Cases(
        np.arange(32),
        Histories.from_lists([training[user][:-1].tolist() for user in range(32)]),
        np.array([training[user][-1] for user in range(32)]),
    )
    block = {**SETTINGS[name], **BY_HEART.get(name, MEMORISE), "name": name}
    recommender = make_recommender(block, name, SPACE)
    recommender.fit([replace(domain(split), validation=seen)], seed=0, device="cpu")
    assert (recommender.ranks(seen, 10) == 1).mean() > 0.9


# --- wrong inputs -------------------------------------------------------------------------------------------


def test_no_domain_is_refused(name: str) -> None:
    with pytest.raises(CatalexError, match=r"one domain"):
        make(name).fit([], seed=0, device="cpu")


def test_what_it_cannot_share_is_refused(name: str) -> None:
    kind = RECOMMENDERS[name]
    if not kind.transfers:
        with pytest.raises(CatalexError, match=rf"{name}.*exactly one domain"):
            make(name).fit([RING, replace(RING, name="other")], seed=0, device="cpu")
    if name == "t5":
        with pytest.raises(CatalexError, match=r"ring: .*needs identifiers.*catalex tokenize"):
            make(name).fit([replace(RING, identifiers=None)], seed=0, device="cpu")
        with pytest.raises(CatalexError, match=r"number of levels.*found 2.*allowed: 3"):
            make(name).fit([replace(RING, identifiers=RING.identifiers[:, :2])], seed=0, device="cpu")


def test_what_it_needs_and_lacks_is_named(name: str) -> None:
    for need in RECOMMENDERS[name].needs:
        with pytest.raises(CatalexError, match=rf"ring: .*needs {need.replace('_', ' ')}"):
            make(name).fit([replace(RING, **{need: None})], seed=0, device="cpu")


def test_it_says_whether_it_starts_from_other_weights(name: str, fitted: Recommender, tmp_path: Path) -> None:
    """One that transfers learns a second domain from the weights of the first; others refuse."""
    fitted.save(tmp_path / "first")
    started = make(name, epochs=1)
    if not RECOMMENDERS[name].transfers:
        with pytest.raises(CatalexError, match=r"item ids of one catalogue.*starts: \[scratch\]"):
            started.start_from(tmp_path / "first")
        return
    started.start_from(tmp_path / "first")
    second = domain(ring(users=25, items=18), items=18, name="second")
    started.fit([second], seed=0, device="cpu")
    assert set(started.split_ids) == {"ring", "second"}
    assert started.recommend(Histories.from_lists([[3, 4]]), 18).items.max() == 17
    scratch = make(name, epochs=1)
    scratch.fit([second], seed=0, device="cpu")
    assert weights(started, tmp_path / "started") != weights(scratch, tmp_path / "scratch")


@trained_only
def test_training_without_a_single_pair_is_refused(name: str) -> None:
    lonely = replace(RING, training=Histories.from_lists([[1], [], [2]]))
    with pytest.raises(CatalexError, match=r"ring: no .*two"):
        make(name).fit([lonely], seed=0, device="cpu")


def test_unknown_options_are_named_with_the_nearest(name: str) -> None:
    with pytest.raises(CatalexError, match=r"here: unknown key 'epochz'"):
        make_recommender({"name": name, "epochz": 3}, "here", SPACE)
    with pytest.raises(CatalexError, match=rf"unknown recommender '{name}x'.*[Dd]id you mean '{name}'"):
        make_recommender({"name": f"{name}x"}, "here", SPACE)


def test_folders_that_are_not_whole_are_refused(fitted: Recommender, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="does not exist"):
        load_recommender(tmp_path)
    fitted.save(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CatalexError, match="damaged"):
        load_recommender(tmp_path)
