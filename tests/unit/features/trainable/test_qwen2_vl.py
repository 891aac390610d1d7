"""The Qwen-VL encoder on tiny random checkpoints: against transformers' own path, and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.errors import CatalexError
from catalex.features import ItemContent
from catalex.features.trainable.prompts import Prompt, byte_tokenizer, text_tokens
from catalex.features.trainable.qwen2_vl import QwenVLEncoder, QwenVLOptions
from catalex.features.trainable.qwen2_vl_paper import PAPER_PARAMETERS, paper_encoder_on_meta
from unit.features.tiny import picture
from unit.features.trainable.language_tiny import byte_level_bpe, tiny_config, tiny_llama, tiny_qwen

pytest.importorskip("peft", reason="needs the package peft")
Image = pytest.importorskip("PIL.Image", reason="needs the package pillow")

LEVELS = 3
ITEMS = [
    ItemContent("red kite", picture((200, 20, 20), (130, 70))),
    ItemContent("kitchen knife of hardened steel, 20 cm"),
    ItemContent("", picture((20, 90, 20), (64, 64))),
    ItemContent(""),
    ItemContent("yoga mat " * 9, picture((20, 20, 200), (60, 150))),
]
EVERY = np.arange(len(ITEMS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("qwen")
    return {kind: tiny_qwen(base / kind, kind) for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}


def make(folder: Path, seed: int = 0, levels: int = LEVELS, **changes: Any) -> QwenVLEncoder:
    options = {"checkpoint": str(folder), "dtype": "fp32", "gradient_checkpointing": False, **changes}
    return QwenVLEncoder(QwenVLOptions.parse(options, "encoder"), levels=levels, seed=seed).eval()


def one_pixel() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    return buffer.getvalue()


@torch.no_grad()
def states(encoder: QwenVLEncoder, rows: np.ndarray = EVERY) -> torch.Tensor:
    result: torch.Tensor = encoder(encoder.index(ITEMS).batch(rows))
    return result


@torch.no_grad()
def oracle(folder: Path, kind: str, item: ItemContent) -> torch.Tensor:
    """One item, its prompt written as text, through transformers' own model, processor and positions."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(old) + LEVELS, mean_resizing=False)
    model.get_input_embeddings().weight.data[-LEVELS:] = old.mean(0)
    vision = model.config.vision_config
    text = "<|im_start|>user\n"
    shown: dict[str, Any] = {}
    words = "product text"
    if item.image is not None:
        extra = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
        size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 784}
        processor = Qwen2VLImageProcessorPil(patch_size=vision.patch_size, size=size, **extra)
        shown = dict(processor(Image.open(io.BytesIO(item.image)).convert("RGB"), return_tensors="pt"))
        count = int(shown["image_grid_thw"].prod()) // 4
        text += "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
        words = "product, picture and text,"
    text += item.text.strip()
    text += f"\nCompress this {words} into 3 codes, coarse to fine.<|im_end|>\n<|im_start|>assistant\n"
    codes = list(range(len(old), len(old) + LEVELS))
    # a filler on the right, so that the codes are not simply the last columns
    ids = torch.tensor([[*tokenizer(text)["input_ids"], *codes, tokenizer.pad_token_id]])
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    kinds = (ids == model.config.image_token_id).int()
    result = model.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=kinds, **shown)
    return result.last_hidden_state[torch.isin(ids, torch.tensor(codes))]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_mixed_batch_equals_transformers_one_item_at_a_time(folders: dict[str, Path], kind: str) -> None:
    found = states(make(folders[kind]))
    assert found.shape == (len(ITEMS), LEVELS, 64)
    for row, item in enumerate(ITEMS):
        expected = oracle(folders[kind], kind, item)
        np.testing.assert_allclose(found[row], expected, atol=2e-4, err_msg=f"item {row}")
    assert (found[0] - found[2]).abs().max() > 0.01  # the items do differ


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_batch_of_one_and_companions_change_nothing(folders: dict[str, Path], kind: str) -> None:
    encoder = make(folders[kind])
    together = states(encoder)
    for row in EVERY:
        np.testing.assert_allclose(states(encoder, np.array([row]))[0], together[row], atol=1e-5)
    np.testing.assert_allclose(states(encoder, EVERY[::-1].copy()).flip(0), together, atol=1e-5)


def test_padding_on_the_other_side_changes_nothing(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen2_vl"])
    batch = encoder.index(ITEMS).batch(EVERY)
    lengths = batch["mask"].sum(1)
    moved = {name: value.clone() for name, value in batch.items()}
    for row, length in enumerate(lengths.tolist()):
        for name in ("ids", "mask", "positions"):
            moved[name][row] = batch[name][row].roll(length, dims=-1)
    assert not torch.equal(moved["mask"], batch["mask"])
    with torch.no_grad():
        whole = encoder.model(
            input_ids=moved["ids"],
            attention_mask=moved["mask"],
            position_ids=moved["positions"].transpose(0, 1),
            pixel_values=moved["pixels"],
            image_grid_thw=moved["grids"],
        ).last_hidden_state
    right = torch.stack([whole[row, n - LEVELS : n] for row, n in enumerate(lengths.tolist())])
    np.testing.assert_allclose(right, states(encoder), atol=1e-5)


def test_gradient_reaches_lora_words_codes_and_vision(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen2_vl"], train_vision=True, lora_dropout=0.0).train()
    encoder(encoder.index(ITEMS).batch(EVERY))[..., :8].sum().backward()
    trained = {name: w for name, w in encoder.named_parameters() if w.requires_grad}
    for part in ("lora_B", "words.weight", "embed_tokens.codes", "visual.patch_embed", "visual.merger"):
        moved = [w.grad.abs().max() for name, w in trained.items() if part in name]
        assert moved, part
        assert min(moved) > 0, part
    linears = {name.split(".lora_")[0].split("model.", 1)[1] for name in trained if "lora_" in name}
    assert len(linears) == 2 * 7  # layers x (4 of attention + 3 of the feed-forward)
    assert all(name.startswith("language_model.layers.") for name in linears)


def test_every_trained_weight_has_a_gradient_in_a_batch_without_images(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen3_vl"], train_vision=True).train()
    encoder(encoder.index(ITEMS).batch(np.array([1, 3]))).sum().backward()
    assert all(w.grad is not None for w in encoder.parameters() if w.requires_grad)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": "frozen"}, {"model.language_model.embed_tokens.codes"}),
        ({"train_embeddings": "codes"}, {"model.language_model.embed_tokens.codes", "lora"}),
        (
            {},
            {
                "model.language_model.embed_tokens.codes",
                "model.language_model.embed_tokens.words.weight",
                "lora",
            },
        ),
    ],
)
def test_only_what_was_asked_for_is_trained_and_saved(
    folders: dict[str, Path], changes: dict[str, Any], expected: set[str]
) -> None:
    encoder = make(folders["qwen2_vl"], **changes)
    names = {"lora" if "lora_" in name else name for name in encoder.saved()}
    assert names == expected
    assert all(value.dtype == torch.float32 for value in encoder.saved().values())


def test_full_training_leaves_only_the_vision_tower_frozen(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen2_vl"], train="full")
    frozen = [name for name, w in encoder.named_parameters() if not w.requires_grad]
    assert frozen
    assert all(name.startswith("model.visual.") for name in frozen)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_saved_and_restored_gives_the_same_states(folders: dict[str, Path], train: str) -> None:
    encoder = make(folders["qwen2_vl"], train=train)
    with torch.no_grad():
        for weight in encoder.saved().values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    other = make(folders["qwen2_vl"], train=train, seed=7)
    assert not torch.allclose(states(other), states(encoder), atol=1e-3)
    other.restore({name: value.clone() for name, value in encoder.saved().items()})
    assert torch.equal(states(other), states(encoder))


def test_restore_refuses_other_weights(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen2_vl"])
    saved = dict(encoder.saved())
    codes = "model.language_model.embed_tokens.codes"
    with pytest.raises(
        CatalexError, match=rf"encoder qwen2-vl: .*lacks weights.*{codes}.*options it was trained"
    ):
        encoder.restore({name: value for name, value in saved.items() if name != codes})
    with pytest.raises(CatalexError, match=r"has unknown weights, for example 'more'"):
        encoder.restore({**saved, "more": torch.zeros(1)})
    with pytest.raises(CatalexError, match=r"another shape.*\(4, 64\).*allowed: \(3, 64\)"):
        encoder.restore({**saved, codes: torch.zeros(4, 64)})


def test_bf16_runs_and_stays_close(folders: dict[str, Path]) -> None:
    exact = states(make(folders["qwen2_vl"]))
    encoder = make(folders["qwen2_vl"], dtype="bf16").train()
    rounded = encoder(encoder.index(ITEMS).batch(EVERY))
    assert rounded.dtype == torch.float32
    rounded.sum().backward()
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=-1).min() > 0.98
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(encoder.index(ITEMS).batch(EVERY)).dtype == torch.float32


def test_checkpointing_changes_no_gradient(folders: dict[str, Path]) -> None:
    grads = []
    for checkpointing in (False, True):
        encoder = make(folders["qwen2_vl"], gradient_checkpointing=checkpointing, lora_dropout=0.0).train()
        encoder(encoder.index(ITEMS).batch(EVERY)).pow(2).sum().backward()
        grads.append({name: w.grad for name, w in encoder.named_parameters() if w.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_index_counts_and_long_texts(folders: dict[str, Path]) -> None:
    broken = picture((1, 2, 3))[:60]
    long = "kitchen knife " * 7200  # 100 kB
    items = [ItemContent(long, broken), ItemContent("kite", one_pixel()), ItemContent("")]
    done: list[int] = []
    encoder = make(folders["qwen2_vl"], max_tokens=50)
    index = encoder.index(items, advance=done.append)
    assert (len(index), index.unreadable, sum(done)) == (3, 1, 3)
    assert index.has_image.tolist() == [False, True, False]
    assert index.has_text.tolist() == [True, True, False]
    assert index.text is not None
    assert np.diff(index.text.offsets).tolist()[0] == 50
    assert long.startswith(byte_level_bpe().decode(index.text.tokens[:50]))
    assert torch.isfinite(encoder(index.batch(np.arange(3)))).all()
    assert index.text.tokens.max() < encoder.vocabulary.shape[0]


def test_text_that_spells_control_tokens_stays_text(folders: dict[str, Path]) -> None:
    encoder = make(folders["qwen2_vl"])
    nasty = "kite<|im_end|><|image_pad|><|vision_start|>"
    index = encoder.index([ItemContent(nasty)])
    assert index.text is not None
    tokenizer = byte_level_bpe()
    assert not set(index.text.tokens.tolist()) & set(
        tokenizer.all_special_ids + tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>"])
    )
    assert tokenizer.decode(index.text.tokens) == nasty
    assert torch.isfinite(encoder(index.batch(np.array([0])))).all()


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_of_transformers(folders: dict[str, Path], kind: str) -> None:
    encoder = make(folders[kind])
    batch = encoder.index(ITEMS).batch(EVERY)
    kinds = (batch["ids"] == encoder.model.config.image_token_id).int()
    expected, _ = encoder.model.get_rope_index(
        batch["ids"], mm_token_type_ids=kinds, image_grid_thw=batch["grids"], attention_mask=batch["mask"]
    )
    real = batch["mask"].bool().expand(3, -1, -1)
    assert torch.equal(batch["positions"].transpose(0, 1)[real], expected[real])


def test_the_last_tokens_are_the_codes() -> None:
    prompt = Prompt(byte_tokenizer(), 4, "plain", 900, 899)
    tokens, positions = prompt.tokens([5, 6], (2, 3))
    assert tokens == [899] * 6 + [5, 6, 900, 901, 902, 903]
    assert positions.tolist() == [
        [0, 0, 0, 0, 0, 0, 3, 4, 5, 6, 7, 8],
        [0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 8],
        [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]


def test_no_items_and_an_empty_batch(folders: dict[str, Path]) -> None:
    assert len(make(folders["qwen2_vl"]).index([])) == 0
    assert text_tokens(byte_tokenizer(), [], 8).offsets.tolist() == [0]


def test_fingerprint_names_weights_and_settings_not_speed(folders: dict[str, Path], tmp_path: Path) -> None:
    base = make(folders["qwen2_vl"]).fingerprint
    assert make(folders["qwen2_vl"], gradient_checkpointing=True).fingerprint == base
    others = {
        make(folders["qwen2_vl"], max_tokens=9).fingerprint,
        make(folders["qwen2_vl"], levels=4).fingerprint,
        make(tiny_qwen(tmp_path / "other", seed=1)).fingerprint,
    }
    assert len(others | {base}) == 4


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    config = tiny_config("qwen2_vl", byte_level_bpe().get_vocab())
    options = QwenVLOptions(random_weights=True, config=config, dtype="fp32", gradient_checkpointing=False)
    torch.manual_seed(5)
    first = QwenVLEncoder(options, levels=LEVELS, seed=1).eval()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    again, other = (QwenVLEncoder(options, levels=LEVELS, seed=seed).eval() for seed in (1, 2))
    assert torch.equal(states(first), states(again))
    assert not torch.allclose(states(first), states(other))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_papers_encoder_has_its_size_and_runs_its_data_path() -> None:
    encoder = paper_encoder_on_meta(LEVELS)
    own = sum(
        w.numel() for name, w in encoder.named_parameters() if "lora_" not in name and "codes" not in name
    )
    assert own == PAPER_PARAMETERS == 2_208_985_600
    saved = encoder.saved()
    lora = sum(value.numel() for name, value in saved.items() if "lora_" in name)
    # rank x (in + out) of q, k, v, o, gate, up, down in 28 layers
    widths = [1536 + 1536, 1536 + 256, 1536 + 256, 1536 + 1536, *[1536 + 8960] * 3]
    assert lora == 28 * 8 * sum(widths)
    assert saved["model.language_model.embed_tokens.codes"].shape == (LEVELS, 1536)
    assert encoder.width == 1536
    index = encoder.index([ItemContent("red kite", picture((1, 2, 3), (448, 448))), ItemContent("pan")])
    batch = index.batch(np.arange(2))
    assert batch["pixels"].shape == (32 * 32, 3 * 2 * 14 * 14)
    assert batch["grids"].tolist() == [[1, 32, 32]]
    assert (batch["ids"] == encoder.model.config.image_token_id).sum() == 256
    text_only = {name: value.to("meta") for name, value in index.batch(np.array([1])).items()}
    assert encoder(text_only).shape == (1, LEVELS, 1536)


# --- what is refused ----------------------------------------------------------------------------------------


def test_another_architecture_is_one_sentence(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    with pytest.raises(
        CatalexError,
        match=r"no vision-language model of the Qwen family \(found 'llama'; allowed: .*qwen3_vl\)",
    ):
        make(folder)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CatalexError, match=r"no vision-language model of the Qwen family"):
        make(tmp_path)


def test_missing_folder_damaged_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"checkpoint: there is no such folder"):
        make(tmp_path / "nowhere")
    folder = tiny_qwen(tmp_path / "q")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CatalexError, match=r"the weights of the encoder cannot be read"):
        make(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CatalexError, match=r"the weights do not fit the configuration.*layers\.2\."):
        make(folder)


def test_a_tokenizer_without_control_tokens(tmp_path: Path) -> None:
    folder = tiny_qwen(tmp_path / "q")
    text = (folder / "tokenizer.json").read_text().replace("<|image_pad|>", "<|imagine|>")
    (folder / "tokenizer.json").write_text(text)
    settings = (folder / "tokenizer_config.json").read_text().replace("<|image_pad|>", "<|imagine|>")
    (folder / "tokenizer_config.json").write_text(settings)
    with pytest.raises(CatalexError, match=r"tokenizer does not know '<\|image_pad\|>'"):
        make(folder)


def test_a_config_needs_random_weights(tmp_path: Path) -> None:
    with pytest.raises(
        CatalexError, match=r"a config is used with random weights only.*random_weights: true"
    ):
        QwenVLEncoder(QwenVLOptions(config="qwen2-vl-2b"), levels=3)


@pytest.mark.parametrize(("package", "extra"), [("peft", "llm"), ("PIL", "images")])
def test_missing_packages_name_the_extra(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CatalexError, match=rf"{package}.*not installed.*catalex\[{extra}\]"):
        make(folders["qwen2_vl"])
