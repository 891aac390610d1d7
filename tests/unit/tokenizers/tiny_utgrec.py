"""Small parts for the tests of UTGRec: domains of a few words, settings, image latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalex.data.histories import Histories
from catalex.features.base import ItemContent
from catalex.features.latents import LatentIndex
from catalex.features.trainable import make_trainable_encoder
from catalex.tokenizers.base import TokenizerDomain
from catalex.tokenizers.positives import Positives
from catalex.tokenizers.utgrec_network import UTGRecNetwork
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.tokenizers.utgrec_training import Material

WIDTH = 8
WORDS = ("red", "kite", "kites", "pan", "pans", "lid", "blue", "tail")
SIZES: dict[str, Any] = {
    "root": 6,
    "leaf": 8,
    "code_width": 4,
    "projection_hidden": 16,
    "dropout": 0.0,
    "learning_rate": 3e-3,
    "batch": 16,
    "epochs": 3,
    "fine_tune_epochs": 3,
    "fine_tune_rate": 2e-5,
    "fine_tune_warmup": 0.0,
    "alignment_weight": 0.3,
    "quantizer_warmup": 2,
    "image_loss": "mse",
}
FROZEN: dict[str, Any] = {"encoder": {"name": "frozen", "width": 16}, "shortcut": False, **SIZES}


def mini(folder: Path, **options: Any) -> dict[str, Any]:
    """Settings with the BERT of `folder` as encoder."""
    return {"encoder": {"name": "mini", "folder": str(folder)}, **SIZES, **options}


def calm(folder: Path) -> Path:
    """The transformer of `folder` without dropout, so that a loss is a number and not a draw."""
    path = folder / "config.json"
    text = path.read_text(encoding="utf-8")
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        assert f'"{key}": 0.1' in text
        text = text.replace(f'"{key}": 0.1', f'"{key}": 0.0')
    path.write_text(text, encoding="utf-8")
    return folder


def domain(
    name: str, items: int = 30, seed: int = 0, *, images: Callable[[int], bool] = lambda item: False
) -> TokenizerDomain:
    """Items of a few words; `images` says which have an image. The last two items occur in no sequence."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(items, WIDTH)).astype(np.float32)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 9))) for _ in range(items)]
    content = [
        ItemContent(text, bytes([item + 1, seed]) if images(item) else None)
        for item, text in enumerate(texts)
    ]
    histories = [generator.permutation(items - 2)[:6].tolist() for _ in range(items)]
    return TokenizerDomain(name, vectors, Histories.from_lists(histories), f"split-{name}", content)


class TinyTarget:
    """An image target whose autoencoder draws latents from the bytes; an image of byte 255 is unreadable."""

    tokens, channels = 4, 3

    def index(
        self,
        images: Sequence[bytes | None],
        advance: Callable[[int], None] | None = None,
        *,
        cache: Path | None = None,
    ) -> LatentIndex:
        found = [data if data is None or data[0] != 255 else None for data in images]
        present = np.array([data is not None for data in found])
        drawn = [np.random.default_rng(list(data)).normal(size=(1, 4, 3)) for data in found if data]
        means = torch.tensor(np.array(drawn, np.float16).reshape(-1, 1, 4, 3))
        if advance is not None:
            advance(len(images))
        return LatentIndex(present, sum(data is not None for data in images) - int(present.sum()), means)


def build(
    settings: dict[str, Any], *domains: TokenizerDomain, images: bool = False, seed: int = 0
) -> tuple[UTGRecNetwork, Material]:
    """Network and material as `UTGRec.fit` makes them."""
    options = UTGRecOptions.parse(settings, "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = make_trainable_encoder(
            options.encoder, "tokenizer.encoder", levels=options.levels, seed=seed, vectors_width=WIDTH
        )
        target: Any = TinyTarget() if images else None
        network = UTGRecNetwork(encoder, options, seed=seed, latents=target, vectors_width=WIDTH)
        if network.shortcut is not None:  # beyond the first step, in which the encoder's part is zero
            torch.nn.init.normal_(network.project[-1].weight, std=0.1)
    content = [item for one in domains for item in one.content or ()]
    vectors = np.concatenate([one.vectors for one in domains])
    material = Material(
        index=encoder.index(content, vectors),
        positives=Positives.of([one.training for one in domains], [len(one.vectors) for one in domains]),
        vectors=torch.from_numpy(vectors),
        latents=target.index([item.image for item in content]) if images else None,
    )
    return network, material
