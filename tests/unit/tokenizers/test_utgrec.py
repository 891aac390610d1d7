"""UTGRec as a tokenizer: training, fine-tuning, codes of items, and the folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from catalex.artifacts import read_arrays, write_arrays
from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.progress import Track
from catalex.quantize.tree import TreeCodebooks
from catalex.tokenizers import load_tokenizer, make_tokenizer, utgrec, utgrec_training
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.conflicts import resolve
from catalex.tokenizers.folder import WEIGHTS_FILE
from catalex.tokenizers.utgrec import UTGRec
from catalex.tokenizers.utgrec_network import Losses, Step, UTGRecNetwork
from catalex.tokenizers.utgrec_training import _Plan
from catalex.types import Floats
from unit.features.tiny import tiny_transformer
from unit.features.trainable.language_tiny import byte_level_bpe, tiny_config
from unit.tokenizers.tiny_utgrec import FROZEN, TinyTarget, calm, domain, mini

DOMAINS = [domain("toys", images=lambda item: item % 3 == 0), domain("office", 20, 1)]
TARGET = domain("games", 24, 2, images=lambda item: item % 2 == 0)
IMAGES = {"image_target": {"name": "taef2"}}


@pytest.fixture(scope="module", autouse=True)
def tiny_target() -> Iterator[None]:
    """No autoencoder is loaded in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utgrec, "make_image_target", lambda *parts: TinyTarget())
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calm(tiny_transformer(tmp_path_factory.mktemp("mini") / "tiny"))


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, Any]:
    """Words, images and all losses."""
    return mini(folder, **IMAGES)


@pytest.fixture(scope="module")
def fitted(settings: dict[str, Any]) -> UTGRec:
    return fit(settings)


def made(settings: dict[str, Any], **options: Any) -> UTGRec:
    found = make_tokenizer({"name": "utgrec", **settings, **options})
    assert isinstance(found, UTGRec)
    return found


def fit(
    settings: dict[str, Any],
    domains: list[TokenizerDomain] | None = None,
    seed: int = 0,
    partial: Path | None = None,
    **options: Any,
) -> UTGRec:
    tokenizer = made(settings, **options)
    tokenizer.fit(domains or DOMAINS, seed=seed, device="cpu", partial=partial)
    return tokenizer


def rows(tokenizer: UTGRec, one: TokenizerDomain, which: slice = slice(None)) -> Floats:
    assert one.content is not None
    return tokenizer.represent(one.content[which], one.vectors[which], name=one.name, device="cpu")


def weights(tokenizer: UTGRec) -> dict[str, Tensor]:
    assert tokenizer.network is not None
    return {name: value.detach().clone() for name, value in tokenizer.network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], part: str = "") -> bool:
    assert one.keys() == other.keys()
    chosen = [name for name in one if part in name]
    assert chosen, part
    return all(torch.equal(one[name], other[name]) for name in chosen)


# --- training -----------------------------------------------------------------------------------------------


def test_every_loss_falls_and_the_facts_count(settings: dict[str, Any]) -> None:
    tokenizer = made(settings, epochs=12, revive_every=4, learning_rate=1e-2)
    facts = tokenizer.fit(DOMAINS, seed=0, device="cpu")
    for name in ("text", "image"):
        assert len(facts[name]) == 12
        assert facts[name][-1] < facts[name][0], name
    assert max(facts["vector"]) < 0.5  # its decoder starts at the way back, so there is little to gain
    assert facts["items"] == 28 + 18  # the last two of each domain occur in no sequence
    assert facts["steps"] == 12 * 3
    assert facts["with_text"] == 50
    assert facts["with_image"] == 10
    assert facts["unreadable_images"] == 0
    assert facts["utilisation_at"] == [4, 8, 12, 16, 20, 24, 28]  # after the warm-up, until 80 %
    assert all(len(levels) == 3 for levels in facts["utilisation"])
    assert facts["trained_parameters"] == facts["parameters"]


@pytest.mark.parametrize(("sizes", "batch"), [((46,), 16), ((46,), 100), ((5,), 1), ((17,), 16)])
def test_every_epoch_takes_every_item_once_in_steps_of_about_one_size(sizes: tuple[int], batch: int) -> None:
    items = np.arange(sizes[0]) * 3
    plan = _Plan(items, batch, 4, seed=0)
    epochs = []
    for epoch in range(4):
        steps = [plan.batch(epoch * plan.each + place) for place in range(plan.each)]
        assert max(map(len, steps)) == plan.size <= batch
        assert min(map(len, steps)) == plan.least >= plan.size - 1
        epochs.append(np.concatenate(steps))
        assert sorted(epochs[-1].tolist()) == items.tolist()
    assert plan.steps == 4 * plan.each
    assert not np.array_equal(epochs[0], epochs[1])
    jumped = _Plan(items, batch, 4, seed=0)  # a resumed run begins anywhere
    assert np.array_equal(jumped.batch(plan.steps - 1), plan.batch(plan.steps - 1))


def test_the_codebooks_rest_until_the_warm_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    backward = utgrec_training._backward

    def watched(network: Any, step: Any, quantize: bool, device: str) -> Any:
        losses = backward(network, step, quantize, device)
        learning = [p.grad is not None and bool(p.grad.any()) for p in network.codebooks.parameters()]
        assert len(set(learning)) == 1
        seen.append((quantize, learning[0]))
        return losses

    monkeypatch.setattr(utgrec_training, "_backward", watched)
    fit(FROZEN, quantizer_warmup=4)
    assert seen == [(False, False)] * 4 + [(True, True)] * 5
    seen.clear()
    fit(FROZEN)  # two steps of warm-up
    assert seen == [(False, False)] * 2 + [(True, True)] * 7
    seen.clear()
    tokenizer = fit(FROZEN, quantizer_warmup=301)
    assert seen == [(False, False)] * 4 + [(True, True)] * 5  # never more than half of a short run
    seen.clear()
    fit(FROZEN, quantizer_warmup=None)
    assert seen == [(False, False)] * 4 + [(True, True)] * 5  # half, where nothing is said
    seen.clear()
    tokenizer.fine_tune(TARGET, "full", seed=0, device="cpu")
    assert seen == [(True, True)] * 6  # fine-tuning has a warm-up of its own, here none


def test_k_means_places_the_codes_when_quantization_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[int] = []
    place = utgrec_training._place_codes
    monkeypatch.setattr(utgrec_training, "_place_codes", lambda *parts: (placed.append(1), place(*parts)))
    fit(FROZEN, kmeans_init=False)
    assert placed == []
    tokenizer = fit(FROZEN)
    assert placed == [1]
    tokenizer.fine_tune(TARGET, "projection", seed=0, device="cpu")
    assert placed == [1]  # fine-tuning keeps the codes that it was given


@pytest.mark.parametrize("start", ["turned", "followed", "settled", "kept"])
def test_the_shortcut_begins_at_trained_items(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    begin = UTGRecNetwork.begin_at_principal_components

    def watched(self: UTGRecNetwork, vectors: Tensor) -> None:
        begun.append(len(vectors))
        begin(self, vectors)

    monkeypatch.setattr(UTGRecNetwork, "begin_at_principal_components", watched)
    tokenizer = fit(FROZEN, shortcut=True, fine_tune_start=start)
    assert begun == [46]
    tokenizer.fine_tune(TARGET, "projection", seed=0, device="cpu")
    assert begun == ([46, 22] if start == "turned" else [46])  # else from what was learned


def test_one_seed_one_result_and_the_seed_acts_on_nothing_else() -> None:
    first = weights(fit(FROZEN))
    torch.manual_seed(123)
    assert same(weights(fit(FROZEN)), first)
    assert not same(weights(fit(FROZEN, seed=1)), first, "project")


def test_held_out_items_do_not_move_the_tokenizer() -> None:
    """Two items occur in no training sequence; whatever happens to them, the tokenizer learns the same."""
    toys = DOMAINS[0]
    vectors = toys.vectors.copy()
    vectors[-2:] = 9.0
    assert same(weights(fit(FROZEN, [replace(toys, vectors=vectors)])), weights(fit(FROZEN, [toys])))
    vectors[0] = 9.0
    assert not same(weights(fit(FROZEN, [replace(toys, vectors=vectors)])), weights(fit(FROZEN, [toys])))


@pytest.mark.parametrize("killed_at", [(1, 4), (5, 6), (7, 8), (11, 12)])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(
    killed_at: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the warm-up, around the step that places the codes (5) and those that restart some (8, 12)."""
    kept = {**FROZEN, **IMAGES, "epochs": 5, "quantizer_warmup": 5, "revive_every": 4}
    kept["checkpoint_seconds"] = 0.0
    straight = made(kept)
    facts = straight.fit(DOMAINS, seed=0, device="cpu")
    advance = Track.advance
    for step in killed_at:

        def dying(self: Track, amount: int = 1, note: str | None = None, *, step: int = step) -> None:
            advance(self, amount, note)
            if self.unit == "steps" and self.count > step:  # the checkpoint of `step` was written
                raise KeyboardInterrupt

        monkeypatch.setattr(Track, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(kept, partial=tmp_path)
        monkeypatch.setattr(Track, "advance", advance)
    resumed = made(kept)
    assert resumed.fit(DOMAINS, seed=0, device="cpu", partial=tmp_path) == facts
    assert same(weights(resumed), weights(straight))


def test_checkpoints_leave_frozen_weights_out(tmp_path: Path) -> None:
    """They never change, and those of a large model are of a type that files of arrays do not know."""
    ids = byte_level_bpe().get_vocab()
    encoder = {
        "name": "qwen2-vl",
        "random_weights": True,
        "config": tiny_config("qwen2_vl", ids),
        "dtype": "bf16",
    }
    pytest.importorskip("peft", reason="LoRA needs the package peft")
    small = {**FROZEN, "encoder": encoder, "epochs": 1, "batch": 32, "checkpoint_seconds": 0.0}
    one = domain("toys", 12)
    options: dict[str, Any] = {"domains": [one], "seed": 3}
    tokenizer = fit(small, **options, partial=tmp_path / "partial")
    assert tokenizer.network is not None
    kept = read_arrays(tmp_path / "partial/checkpoint/model.safetensors")
    assert set(kept) == set(tokenizer.network.trained())
    assert len(kept) < len(tokenizer.network.state_dict())
    assert same(weights(fit(small, **options, partial=tmp_path / "partial")), weights(tokenizer))
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert isinstance(loaded, UTGRec)
    np.testing.assert_array_equal(rows(loaded, one), rows(tokenizer, one))


# --- items that lack something ------------------------------------------------------------------------------


def test_items_without_text_or_image_or_both_are_trained_and_counted(
    settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    toys = domain("toys")
    assert toys.content is not None
    content = list(toys.content)
    for row in range(12):
        text = "" if row % 2 else content[row].text
        image = bytes([row + 1, 7]) if row % 4 < 2 else None
        content[row] = ItemContent(text, image)
    content[20] = ItemContent("red kite", b"\xff")  # an image that cannot be read
    mixed = replace(toys, content=content)
    tokenizer = made(settings, epochs=2)
    facts = tokenizer.fit([mixed], seed=0, device="cpu")
    assert (facts["with_text"], facts["with_image"], facts["unreadable_images"]) == (24, 6, 1)
    assert all(np.isfinite(facts[name]).all() for name in ("total", "text", "image", "alignment"))
    said = capfd.readouterr().err
    assert "1 images could not be read and count as missing" in said
    read = rows(tokenizer, mixed)
    assert np.isfinite(read).all()
    assert tokenizer.encode(read).shape == (30, 3)
    bare = [ItemContent("")] * 30
    tokenizer.fit([replace(toys, content=bare)], seed=0, device="cpu")
    assert "toys: 30 of 30 items have neither text nor image" in capfd.readouterr().err


def test_a_domain_without_content_is_refused() -> None:
    with pytest.raises(CatalexError, match=r"domain 'toys': this tokenizer learns from texts and images"):
        fit(FROZEN, [replace(DOMAINS[0], content=None)])


def test_a_domain_without_training_sequences_is_refused() -> None:
    empty = replace(DOMAINS[0], training=DOMAINS[0].training.take(np.zeros(0, np.int64)))
    with pytest.raises(CatalexError, match="no item occurs in a training sequence"):
        fit(FROZEN, [empty])


def test_a_width_that_the_words_do_not_have_is_refused_before_anything_is_read(
    settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CatalexError, match=r"tokenizer\.decoder_width: .*\(found 40; allowed: 32\)"):
        fit(settings, decoder_width=40)
    assert "read" not in capfd.readouterr().err


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(CatalexError, match=r"no longer a number\. Lower tokenizer\.learning_rate"):
        fit(FROZEN, learning_rate=1e30, clip_norm=1e30, epochs=20)


# --- fine-tuning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["projection", "full"])
def test_fine_tuning_keeps_c_or_not_and_leaves_the_original_alone(
    method: str, settings: dict[str, Any], fitted: UTGRec
) -> None:
    before, read = weights(fitted), rows(fitted, TARGET)
    tuned, curves = fitted.fine_tune(TARGET, method, seed=0, device="cpu")
    assert same(weights(fitted), before)
    np.testing.assert_array_equal(rows(fitted, TARGET), read)
    after = weights(tuned)
    assert same(after, before, ".base") == (method == "projection")
    for part in (".projection", "project.", "lift.", "encoder.", "text.", "image."):
        assert not same(after, before, part), part
    assert tuned.network is not None
    assert all(p.requires_grad for p in tuned.network.parameters())  # frozen for that training alone
    assert tuned.space == fitted.space
    assert len(curves["total"]) == settings["fine_tune_epochs"]
    assert curves["utilisation"] == []  # no code is restarted
    bases = sum(p.numel() for name, p in tuned.network.named_parameters() if name.endswith(".base"))
    frozen = curves["parameters"] - curves["trained_parameters"]
    assert frozen == (bases if method == "projection" else 0)


def test_one_step_of_fine_tuning_moves_every_code_through_w() -> None:
    """Few codes are chosen, and yet no row of E = C W stays where it was."""
    common = fit(FROZEN, root=32, leaf=48, fine_tune_epochs=1)
    few = replace(TARGET, training=TARGET.training.take(np.array([0])))
    own, facts = common.fine_tune(few, "projection", seed=0, device="cpu")
    assert (facts["items"], facts["steps"]) == (6, 1)
    assert common.network is not None
    assert own.network is not None
    for level in range(3):
        before, after = (one.network.codebooks.codebook(level) for one in (common, own))
        assert (before != after).any(dim=1).all()
    plain = fit(FROZEN, root=32, leaf=48, fine_tune_epochs=1, projected=False, weight_decay=0)
    own, _ = plain.fine_tune(few, "full", seed=0, device="cpu")
    assert plain.network is not None
    assert own.network is not None
    before, after = (one.network.codebooks.codebook(0) for one in (plain, own))
    assert 1 <= (before != after).any(dim=1).sum() <= 6  # without W only the codes of these six items move


@pytest.mark.parametrize("method", ["projection", "full"])
def test_turned_codes_meet_a_domain_that_was_not_seen(method: str) -> None:
    """Before any step of fine-tuning: C is as it was, and the domain no longer falls on few codes."""
    away = replace(TARGET, vectors=3 * TARGET.vectors[:, ::-1] + 8)
    used = {}
    for start in ("kept", "settled", "followed", "turned"):
        options = {"epochs": 6, "fine_tune_epochs": 1, "fine_tune_rate": 1e-12, "fine_tune_start": start}
        common = fit(FROZEN, shortcut=True, **options)
        own, _ = common.fine_tune(away, method, seed=0, device="cpu")
        torch.testing.assert_close(
            {name: value for name, value in weights(own).items() if name.endswith(".base")},
            {name: value for name, value in weights(common).items() if name.endswith(".base")},
        )
        used[start] = len(np.unique(own.encode(rows(own, away))[:, 0]))
    assert used["turned"] > used["kept"]
    assert used["settled"] > used["kept"]
    assert used["followed"] > used["kept"]


@pytest.mark.parametrize("start", ["turned", "followed", "settled", "kept"])
def test_codes_follow_when_the_warm_up_of_fine_tuning_ends(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    settle = TreeCodebooks.settle
    forward = UTGRecNetwork.forward

    def settled(self: TreeCodebooks, *args: Any) -> None:
        calls.append("follow")
        settle(self, *args)

    def watched(self: UTGRecNetwork, step: Step, quantize: bool) -> Losses:
        calls.append("quantized" if quantize else "warm")
        return forward(self, step, quantize)

    monkeypatch.setattr(TreeCodebooks, "settle", settled)
    common = fit(FROZEN, shortcut=True, fine_tune_start=start, fine_tune_epochs=4, fine_tune_warmup=0.5)
    monkeypatch.setattr(UTGRecNetwork, "forward", watched)
    own, _ = common.fine_tune(TARGET, "projection", seed=0, device="cpu")
    half = calls.count("quantized")
    assert half > 1
    between = [] if start == "kept" else ["follow"]
    assert calls == ["warm"] * half + between + ["quantized"] * half
    bases = {name for name in weights(own) if name.endswith(".base")}
    assert bases
    assert all(torch.equal(weights(own)[name], weights(common)[name]) for name in bases)


def test_fine_tuning_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = fit(FROZEN, checkpoint_seconds=0.0)
    straight, facts = common.fine_tune(TARGET, "projection", seed=0, device="cpu")
    advance = Track.advance

    def dying(self: Track, amount: int = 1, note: str | None = None) -> None:
        advance(self, amount, note)
        if self.unit == "steps" and self.count == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Track, "advance", dying)
    with pytest.raises(KeyboardInterrupt):
        common.fine_tune(TARGET, "projection", seed=0, device="cpu", partial=tmp_path)
    monkeypatch.setattr(Track, "advance", advance)
    resumed, again = common.fine_tune(TARGET, "projection", seed=0, device="cpu", partial=tmp_path)
    assert again == facts
    assert same(weights(resumed), weights(straight))


def test_a_way_of_fine_tuning_that_does_not_exist_is_refused(fitted: UTGRec) -> None:
    with pytest.raises(CatalexError, match=r"unknown way of fine-tuning 'projections'.*'projection'"):
        fitted.fine_tune(TARGET, "projections", seed=0, device="cpu")


def test_vectors_of_another_encoder_are_refused(fitted: UTGRec) -> None:
    wide = replace(TARGET, vectors=np.ones((24, 9), np.float32))
    message = (
        r"domain 'games': the content vectors have another width .*\(found \(24, 9\); allowed: \(items, 8\)"
    )
    with pytest.raises(CatalexError, match=message):
        fitted.fine_tune(wide, "full", seed=0, device="cpu")
    with pytest.raises(CatalexError, match=message):
        rows(fitted, wide)


def test_fine_tuning_an_untrained_tokenizer_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(CatalexError, match="has not been trained"):
        made(settings).fine_tune(TARGET, "full", seed=0, device="cpu")


# --- codes --------------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_other_items(fitted: UTGRec) -> None:
    whole = rows(fitted, TARGET)
    assert whole.shape == (24, 12)
    assert whole.dtype == np.float32
    for start, size in ((0, 1), (7, 1), (5, 9)):
        part = rows(fitted, TARGET, slice(start, start + size))
        np.testing.assert_allclose(part, whole[start : start + size], atol=1e-5)
        np.testing.assert_array_equal(fitted.encode(part), fitted.encode(whole)[start : start + size])
    assert rows(fitted, TARGET, slice(0, 0)).shape == (0, 12)


def test_codes_are_those_of_the_training_network(fitted: UTGRec) -> None:
    """The forward pass of training chooses the same codes and restores the same vectors."""
    read = rows(fitted, TARGET)
    assert fitted.network is not None
    with torch.no_grad():
        found = fitted.network.codebooks(torch.from_numpy(read).view(-1, 3, 4))
    codes = fitted.encode(read)
    np.testing.assert_array_equal(codes, found.codes.numpy())
    np.testing.assert_allclose(fitted.decode(codes), found.restored.flatten(1).numpy(), rtol=1e-5, atol=1e-5)
    identifiers = resolve(fitted, read, codes)
    assert len(np.unique(identifiers, axis=0)) == 24
    assert (identifiers[:, :-1] == codes[:, :-1]).mean() > 0.9


# --- the folder ---------------------------------------------------------------------------------------------


def test_a_folder_gives_the_same_codes_and_needs_no_autoencoder(
    fitted: UTGRec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(tmp_path)
    monkeypatch.setattr(utgrec, "make_image_target", lambda *parts: pytest.fail("asked for the autoencoder"))
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, UTGRec)
    assert same(weights(loaded), weights(fitted))
    np.testing.assert_array_equal(rows(loaded, TARGET), rows(fitted, TARGET))
    read = rows(loaded, TARGET)
    np.testing.assert_array_equal(loaded.encode(read), fitted.encode(read))
    assert loaded.training == fitted.training


def test_a_loaded_tokenizer_is_fine_tuned_like_the_one_that_was_saved(fitted: UTGRec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, UTGRec)
    one, _ = fitted.fine_tune(TARGET, "projection", seed=0, device="cpu")
    two, _ = loaded.fine_tune(TARGET, "projection", seed=0, device="cpu")
    assert same(weights(one), weights(two))
    one.save(tmp_path / "own")
    again = load_tokenizer(tmp_path / "own")
    assert isinstance(again, UTGRec)
    assert same(weights(again), weights(one))


def test_weights_of_other_options_are_refused(fitted: UTGRec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    arrays = read_arrays(tmp_path / WEIGHTS_FILE)
    arrays["lift.bias"] = arrays["lift.bias"][:5]
    write_arrays(tmp_path / WEIGHTS_FILE, arrays)
    with pytest.raises(CatalexError, match=r"do not fit the configuration of the tokenizer .*'lift\.bias'"):
        load_tokenizer(tmp_path)
