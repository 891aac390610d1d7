"""The generative recommender: weights handed on, catalogues switched, results that batches do not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from catalex.artifacts import read_json, write_json
from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.recommenders import generative
from catalex.recommenders.base import sampled
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.tokenizers.base import CodeSpace
from catalex.training.seeds import generator
from support.worlds import SPACE, domain, identifiers, ring

ITEMS = 20
OPTIONS: dict[str, Any] = {
    "model": {"layers": 1, "hidden": 16, "feed_forward": 32, "heads": 2, "head_width": 8},
    "training": {"epochs": 2, "batch_size": 32, "evaluate_every": 1, "learning_rate": 0.01},
    "max_history": 6,
    "beam": ITEMS,
}
RING = domain(ring())
OTHER = domain(ring(users=12, step=3), name="other", codes=identifiers(ITEMS, seed=1))


def make(space: CodeSpace = SPACE, **changes: Any) -> Generative:
    return Generative(GenerativeOptions.parse({**OPTIONS, **changes}, "t5"), space)


def state(recommender: Generative) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in recommender.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.fixture(scope="module")
def trained() -> Generative:
    recommender = make()
    recommender.fit([RING], seed=0, device="cpu")
    return recommender


@pytest.fixture(scope="module")
def saved(trained: Generative, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trained.save(folder)
    return folder


# --- starting from weights ----------------------------------------------------------------------------------


def test_start_from_takes_the_weights_over(trained: Generative, saved: Path) -> None:
    recommender = make()
    assert not equal(state(recommender), state(trained))
    recommender.start_from(saved)
    assert equal(state(recommender), state(trained))


def test_fit_continues_from_them_and_remembers_both_splits(trained: Generative, saved: Path) -> None:
    frozen = {**OPTIONS["training"], "learning_rate": 1e-12}
    continued, anew = make(training=frozen), make(training=frozen)
    continued.start_from(saved)
    for recommender in (continued, anew):
        recommender.fit([OTHER], seed=0, device="cpu")
    assert near(state(continued), state(trained))  # hardly any learning shows where it began
    assert not near(state(anew), state(trained))
    assert continued.split_ids == {"ring": RING.split_id, "other": OTHER.split_id}
    assert anew.split_ids == {"other": OTHER.split_id}


def test_a_killed_fine_tuning_resumes_from_its_own_checkpoint(saved: Path, tmp_path: Path) -> None:
    whole, first, second = make(), make(), make()
    for recommender in (whole, first, second):
        recommender.start_from(saved)
    whole.fit([OTHER], seed=0, device="cpu")
    first.fit([OTHER], seed=0, device="cpu", partial=tmp_path)
    second.fit([OTHER], seed=0, device="cpu", partial=tmp_path)  # finds a finished training
    assert equal(state(whole), state(first))
    assert equal(state(whole), state(second))


def test_other_codes_and_other_sizes_are_refused(saved: Path) -> None:
    with pytest.raises(CatalexError, match=r"writes other codes.*tokenizer that it was pre-trained with"):
        make(CodeSpace((4, 4, 8), (0, 1, 2))).start_from(saved)
    with pytest.raises(CatalexError, match=r"writes other codes"):
        make(CodeSpace((4, 4, 4), (0, 1, 1))).start_from(saved)
    with pytest.raises(CatalexError, match=r"wrong shape"):
        make(model={**OPTIONS["model"], "hidden": 24}).start_from(saved)
    with pytest.raises(CatalexError, match=r"is missing"):
        make(model={**OPTIONS["model"], "layers": 2}).start_from(saved)


def test_another_version_or_another_recommender_is_refused(saved: Path, tmp_path: Path) -> None:
    config = read_json(saved / "config.json")
    for change in ({"format": 99}, {"name": "sasrec"}):
        write_json(tmp_path / "config.json", {**config, **change})
        with pytest.raises(
            CatalexError, match=r"not a generative recommender of this version.*[Tt]rain it again"
        ):
            make().start_from(tmp_path)


# --- files --------------------------------------------------------------------------------------------------


def test_transformers_loads_the_model_folder(trained: Generative, saved: Path) -> None:
    other, facts = T5ForConditionalGeneration.from_pretrained(saved / "model", output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    assert other.config.eos_token_id == trained.vocabulary.eos
    assert other.config.decoder_start_token_id == trained.vocabulary.pad
    tokens = torch.randint(1, 13, (3, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(1, 13, (3, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = other.eval()(input_ids=tokens, labels=labels).logits
        assert torch.allclose(trained.model.eval()(tokens, labels), theirs, atol=2e-5)


# --- recommending -------------------------------------------------------------------------------------------


def test_decode_batch_changes_nothing(saved: Path) -> None:
    histories = RING.validation.histories
    found = []
    for size in (1, 3, 256):
        recommender = Generative.load(saved)
        recommender.options = recommender.options.model_copy(update={"decode_batch": size})
        found.append(recommender.recommend(histories, 10))
    for ranking in found[1:]:
        np.testing.assert_array_equal(ranking.items, found[0].items)
        np.testing.assert_allclose(ranking.scores, found[0].scores, atol=1e-5)


def test_equal_scores_come_in_the_order_of_item_ids(saved: Path) -> None:
    recommender = Generative.load(saved)
    with torch.no_grad():
        for parameter in recommender.model.parameters():
            parameter.zero_()
    found = recommender.recommend(Histories.from_lists([[3, 4], [7]]), ITEMS)
    assert found.items.tolist() == [list(range(ITEMS))] * 2
    assert (found.scores == found.scores[0, 0]).all()


def test_scores_are_log_probabilities_of_the_whole_identifier(saved: Path) -> None:
    """Against the sum of log-softmax values that one parallel forward gives, item by item."""
    recommender = Generative.load(saved)
    history = [5, 6, 7]
    tokens = recommender.vocabulary.tokens(RING.identifiers)
    text = torch.tensor([*tokens[history].ravel(), recommender.vocabulary.eos])[None]
    found = recommender.recommend(Histories.from_lists([history]), ITEMS)
    for item, score in zip(found.items[0], found.scores[0], strict=True):
        labels = torch.from_numpy(tokens[item])[None]
        with torch.no_grad():
            logits = recommender.model(text, labels).log_softmax(-1)
        own = logits.gather(2, labels[:, :, None]).sum().item()
        assert score == pytest.approx(own, abs=1e-4)


def test_binding_switches_the_catalogue_and_learns_nothing(saved: Path) -> None:
    recommender = Generative.load(saved)
    before = state(recommender)
    small = replace(OTHER, items=4, identifiers=identifiers(4, seed=3))
    recommender.bind(small)
    found = recommender.recommend(Histories.from_lists([[0, 1], [3]]), 6)
    assert [sorted(row) for row in found.items.tolist()] == [[-1, -1, 0, 1, 2, 3]] * 2
    assert equal(state(recommender), before)
    assert recommender.split_ids == {"ring": RING.split_id}


def test_an_empty_history_is_refused(trained: Generative) -> None:
    with pytest.raises(CatalexError, match=r"a history is empty.*found 1.*at least one item"):
        trained.recommend(Histories.from_lists([[3], []]), 5)


def test_validation_takes_a_random_part_and_not_the_first_users() -> None:
    def part(count: int | None, seed: int) -> Cases:
        return sampled(RING.validation, count, generator(seed, "validation", RING.name))

    assert len(part(None, 0)) == len(part(30, 0)) == 30
    some = part(10, seed=0)
    assert len(some) == 10
    assert some.users.tolist() == sorted(some.users.tolist())
    assert some.users.tolist() != list(range(10))
    assert some.users.tolist() == part(10, seed=0).users.tolist()
    assert some.users.tolist() != part(10, seed=1).users.tolist()


def test_the_search_of_a_catalogue_stays_and_follows_the_weights(saved: Path) -> None:
    recommender = Generative.load(saved)
    recommender.bind(RING)
    histories = Histories.from_lists([[5, 6, 7]])
    before = recommender.recommend(histories, 3)
    engine = recommender._resident
    assert engine is not None
    assert engine.kind == "beam"  # on a CPU
    assert engine.precision == "fp32"
    with torch.no_grad():
        for parameter in recommender.model.parameters():
            parameter.mul_(1.1)
    recommender.bind(RING)
    after = recommender.recommend(histories, 3)
    assert recommender._resident is engine
    assert (after.scores != before.scores).all()
    recommender.bind(OTHER)
    assert recommender._resident is None


PACKS = [
    ("auto", "auto", "cpu", False, True),
    ("auto", "auto", "cuda", True, True),
    ("auto", "bf16", "cuda:1", True, True),
    ("auto", "auto", "cuda", False, False),
    ("auto", "fp32", "cuda", True, False),
    ("packed", "fp32", "cuda", False, True),
    ("length-classes", "auto", "cuda", True, False),
    ("length-classes", "auto", "cpu", True, False),
]


@pytest.mark.parametrize(("batching", "precision", "device", "kernels", "packs"), PACKS)
def test_auto_packs_on_a_cpu_and_where_the_kernels_run(
    batching: str, precision: str, device: str, kernels: bool, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []

    def runs(_: Any, capacity: int, where: torch.device) -> bool:
        asked.append((capacity, str(where)))
        return kernels

    monkeypatch.setattr(generative, "runs", runs)
    recommender = make(training={"batching": batching, "precision": precision}, max_history=40)
    recommender.device = device
    assert recommender._packs() is packs
    # 40 items and the end token do not fit into 64 places
    wanted = [(128, device)] if batching == "auto" and device != "cpu" else []
    assert asked == wanted


def test_packed_and_padded_batches_are_what_fit_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a batch tells which way was taken."""
    for batching, packs in (("auto", True), ("packed", True), ("length-classes", False)):
        keys: set[str] = set()
        loss = generative._loss

        def seen(model: Any, batch: Any, *more: Any, keys: set[str] = keys, loss: Any = loss) -> Any:
            keys.update(batch)
            return loss(model, batch, *more)

        with monkeypatch.context() as patched:
            patched.setattr(generative, "_loss", seen)
            make(training={**OPTIONS["training"], "epochs": 1, "batching": batching}).fit(
                [RING], seed=0, device="cpu"
            )
        assert ("widths" in keys) is packs
