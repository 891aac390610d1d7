"""Transformer vectors against the obvious one-text-at-a-time computation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from catalex.errors import CatalexError
from catalex.features import ItemContent, make_encoder
from catalex.features.transformer_text import TransformerText, TransformerTextOptions, declared_pooling
from unit.features.tiny import tiny_transformer

TEXTS = ["kite", "red kites in the sky", "a pan", "kite " * 100, "Z"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("hf") / "tiny")


def items(texts: list[str]) -> list[ItemContent]:
    return [ItemContent(text) for text in texts]


def oracle(folder: Path, text: str, pooling: str, max_tokens: int) -> np.ndarray:
    """One text, no padding, straight from the definition."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=max_tokens)["input_ids"]
    with torch.no_grad():
        states = (
            AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        )
    vector = (states.mean(0) if pooling == "mean" else states[0]).numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equals_one_text_at_a_time(folder: Path, pooling: str) -> None:
    options = TransformerTextOptions(pooling=pooling, precision="fp32", max_tokens=16)
    found = TransformerText(folder, options).encode(items(TEXTS))
    expected = np.stack([oracle(folder, text, pooling, 16) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_companions_in_a_batch_change_no_bit(folder: Path, precision: str) -> None:
    encoder = TransformerText(folder, TransformerTextOptions(precision=precision))
    many = [f"{text} {number}" for number in range(12) for text in TEXTS]
    together = encoder.encode(items(many))
    alone = np.concatenate([encoder.encode(items([text])) for text in many])
    assert np.array_equal(together, alone)


def test_tokens_are_limited_by_the_positions_of_the_model(folder: Path) -> None:
    encoder = TransformerText(folder, TransformerTextOptions(max_tokens=500, precision="fp32"))
    assert encoder.max_tokens == 64
    np.testing.assert_allclose(
        encoder.encode(items(["kite " * 200])), encoder.encode(items(["kite " * 62])), atol=1e-6
    )


def test_bf16_stays_close_to_fp32(folder: Path) -> None:
    exact = TransformerText(folder, TransformerTextOptions(precision="fp32")).encode(items(TEXTS))
    rounded = TransformerText(folder, TransformerTextOptions(precision="bf16")).encode(items(TEXTS))
    assert (exact * rounded).sum(1).min() > 0.999
    assert np.abs(exact - rounded).max() > 0


def test_weights_settings_and_tokenizer_show_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def fingerprint(where: Path, **options: object) -> str:
        return TransformerText(
            where, TransformerTextOptions.parse({"precision": "fp32", **options}, "t"), name="x"
        ).fingerprint

    base = fingerprint(folder)
    assert fingerprint(tiny_transformer(tmp_path / "same")) == base
    assert fingerprint(tiny_transformer(tmp_path / "other", seed=1)) != base
    assert len({base, fingerprint(folder, pooling="cls"), fingerprint(folder, precision="bf16")}) == 3
    (tmp_path / "same" / "tokenizer_config.json").write_text("{}")
    assert fingerprint(tmp_path / "same") != base


def test_pooling_follows_the_folder(tmp_path: Path) -> None:
    assert declared_pooling(tiny_transformer(tmp_path / "a")) == "mean"
    assert declared_pooling(tiny_transformer(tmp_path / "b", pooling="mean_tokens")) == "mean"
    assert declared_pooling(tiny_transformer(tmp_path / "c", pooling="cls_token")) == "cls"
    with pytest.raises(
        CatalexError, match=r"pooling that is not supported.*pooling_mode_max_tokens.*pooling: mean"
    ):
        declared_pooling(tiny_transformer(tmp_path / "d", pooling="max_tokens"))


def test_a_further_layer_is_refused(tmp_path: Path) -> None:
    tiny_transformer(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(CatalexError, match=r"modules\.json: .*further layer.*'Dense'"):
        make_encoder({"name": f"hf:{tmp_path}"}, "embed.encoder")


def test_a_folder_without_a_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"configuration of the encoder cannot be read"):
        make_encoder({"name": f"hf:{tmp_path}"}, "embed.encoder")


def test_damaged_or_missing_weights_are_a_sentence(tmp_path: Path) -> None:
    tiny_transformer(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CatalexError, match=r"weights of the encoder cannot be read"):
        make_encoder({"name": f"hf:{tmp_path}"}, "e").encode(items(["kite"]))
    weights.unlink()
    with pytest.raises(CatalexError, match=r"weights of the encoder cannot be read"):
        make_encoder({"name": f"hf:{tmp_path}"}, "e").encode(items(["kite"]))


def test_missing_folder_and_unknown_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"e\.name: there is no such folder.*missing"):
        make_encoder({"name": f"hf:{tmp_path}/missing"}, "e")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        CatalexError, match=r"'hf:nobody/no-model' is neither a folder nor.*HF_HUB_OFFLINE is set"
    ):
        make_encoder({"name": "hf:nobody/no-model"}, "e")
