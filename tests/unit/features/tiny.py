"""Small parts for the tests of features: a random transformer, a drawn image, an encoder that counts."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalex.features.base import ContentEncoder, ItemContent
from catalex.options import Options

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
    "kite",
    "red",
    "pan",
    "##s",
    ".",
]


def tiny_transformer(folder: Path, pooling: str | None = None, seed: int = 0) -> Path:
    """A 2-layer random BERT with a WordPiece vocabulary, saved as transformers saves it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        flags = {"word_embedding_dimension": 32, f"pooling_mode_{pooling}": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    return folder


def picture(color: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> bytes:
    """A PNG with a coloured rectangle on white."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((10, 10, size[0] - 15, size[1] - 5), fill=color)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Counting(ContentEncoder):
    """Vectors from a hash of the text. Remembers what it encoded; breaks off after `allowed` calls."""

    Options = Options

    def __init__(self, width: int = 8, allowed: int | None = None) -> None:
        self._width, self.allowed = width, allowed
        self.calls: list[list[str]] = []

    @property
    def fingerprint(self) -> str:
        return f"counting-{self._width}"

    @property
    def width(self) -> int:
        return self._width

    def encode(
        self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None
    ) -> np.ndarray[Any, Any]:
        if self.allowed is not None and len(self.calls) >= self.allowed:
            raise KeyboardInterrupt
        self.calls.append([item.text for item in items])
        rows = []
        for item in items:
            seed = int.from_bytes(hashlib.sha256(item.text.encode()).digest()[:8])
            rows.append(np.random.default_rng(seed).normal(size=self._width))
        # a trace of the batch, as rounding leaves one: shows whether a resumed run meets the same batches
        vectors = np.asarray(rows).reshape(len(items), self._width) + 1e-6 * len(items)
        if advance is not None:
            advance(len(items))
        unit: np.ndarray[Any, Any] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
            np.float32
        )
        return unit
