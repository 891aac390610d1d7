"""The trainable encoder ``mini``: MiniLM with L learned code tokens behind the text, trainable on a laptop.

B items, T text tokens, I image tokens (0, 1 or 4), L code tokens, d width (384 for MiniLM), V word pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from catalex.artifacts import hash_file, hash_json
from catalex.errors import user_error
from catalex.features.base import ItemContent
from catalex.features.minilm import minilm_folder
from catalex.features.trainable.base import Batch, ContentIndex, TextTargets, TrainableEncoder
from catalex.features.trainable.image_features import CHANNELS, ImageCollector, ImageFeatures
from catalex.features.trainable.text_index import SPECIALS, TextCollector, TokenizedTexts, blocks
from catalex.features.trainable.weights import take_weights
from catalex.features.transformer_text import _load, find_folder
from catalex.options import Options
from catalex.types import Floats, Ints

_REVISION = 1  # raise when the mathematics or the starting weights change

POSITION_OFFSETS = {"bert": 0, "roberta": 1, "xlm-roberta": 1}
"""Kinds of transformer that work here (absolute positions, every token sees every token): whether a text
begins at position 0, or one behind the id of the padding token."""


class MiniOptions(Options):
    """What the encoder reads and which of its weights learn."""

    folder: str | None = None
    """A BERT-like transformer instead of MiniLM: a folder, or an id of the Hugging Face hub."""

    max_tokens: int = Field(default=128, ge=8)
    """T, tokens read from each text, two specials included; lowered to what the model's positions allow.
    sentence-transformers trained all-MiniLM-L6-v2 with 128."""

    start: Literal["mean", "plain"] = "mean"
    """``plain``: a hidden state is the code token's own, as in UTGRec (arXiv 2504.04405, section 2.2).
    ``mean`` (ours) adds the mean of the text tokens' states of the same pass: MiniLM was trained to keep the
    meaning of a text in that mean, while the state of a token it has never met says little at first."""

    frozen_layers: int = Field(default=0, ge=0)
    """Lower layers that do not learn, with the word and position embeddings when above 0. Code tokens and the
    image projection always learn."""

    images: Literal["none", "efficientnet-lite0"] = "none"
    """Frozen network whose features of the item's image become extra tokens behind the text."""

    image_tokens: Literal[1, 4] = 1
    """I, tokens an image: its mean, or the means of its four quarters."""

    independent: bool = False
    """Whether a code token sees the text and itself only, and the text no code token, so that the L hidden
    states know nothing of each other (LAMIA, arXiv 2409.07276); UTGRec's code tokens see each other."""

    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass: one forward pass more, but the activations of one layer
    at a time. Same gradients."""


class MiniIndex(ContentIndex):
    """N tokenized texts and, where wanted, image features."""

    def __init__(self, texts: TokenizedTexts, images: ImageFeatures | None) -> None:
        self.texts, self.images = texts, images
        self.text: TextTargets = texts.pieces
        self.has_text = texts.lengths > 0
        self.has_image = np.zeros(len(texts.lengths), np.bool_) if images is None else images.present
        self.unreadable = 0 if images is None else images.unreadable

    def __len__(self) -> int:
        return len(self.has_text)

    def batch(self, rows: Ints) -> Batch:
        """``tokens`` ``(B, T)`` with specials, ``real`` ``(B, T)``; when the encoder reads images also
        ``images`` ``(B, I, 1280)``, unit vectors, and ``seen`` ``(B,)``."""
        tokens, real = self.texts.batch(rows)
        made = {"tokens": torch.from_numpy(tokens), "real": torch.from_numpy(real)}
        if self.images is not None:
            images, seen = self.images.batch(rows)
            made |= {"images": torch.from_numpy(images), "seen": torch.from_numpy(seen)}
        return made


class MiniEncoder(TrainableEncoder):
    """A bidirectional transformer reads ``[text, image tokens, code tokens]``; see `MiniOptions.start`.

    Image and code tokens have fixed positions behind the longest possible text, so the padding of a batch
    moves nothing. Absent tokens are left out of attention.
    """

    Options = MiniOptions

    def __init__(self, options: MiniOptions, *, levels: int, seed: int) -> None:
        super().__init__()
        self.options, self.levels, self.seed = options, levels, seed
        self.reads_images = options.images != "none"
        self.image_tokens = options.image_tokens if self.reads_images else 0
        self.folder = find_folder(options.folder, "encoder.folder") if options.folder else minilm_folder()
        self._tokenizer, self.transformer = load_transformer(self.folder)
        config = self.transformer.config
        self.width = int(config.hidden_size)
        self._offset = POSITION_OFFSETS[config.model_type] * (1 + int(config.pad_token_id or 0))
        self.max_tokens = self._fit_positions(int(config.max_position_embeddings) - self._offset)
        self._freeze(int(config.num_hidden_layers))

        generator = torch.Generator().manual_seed(seed)
        words = self.transformer.embeddings.word_embeddings.weight.detach()
        centre, spread = words.mean(0), words.std()
        # around the mean word, as far from it as words are: different from the start, strange to no layer
        self.codes = nn.Parameter(centre + spread * torch.randn(levels, self.width, generator=generator))
        self.image_projection: nn.Linear | None = None
        if self.reads_images:
            self.image_projection = nn.utils.skip_init(nn.Linear, CHANNELS, self.width)
            with torch.no_grad():  # inputs have a mean square of 1, results shall lie among the words
                self.image_projection.weight.normal_(0, float(spread) / CHANNELS**0.5, generator=generator)
                self.image_projection.bias.copy_(centre)

    @property
    def fingerprint(self) -> str:
        """Hash of the transformer's files and of everything that changes a result."""
        files = [*self.folder.glob("*.safetensors"), *self.folder.glob("*token*.json")]
        files += [path for path in (self.folder / "config.json", self.folder / "vocab.txt") if path.is_file()]
        later = set() if self.options.independent else {"independent"}  # old fingerprints stay valid
        settings = self.options.model_dump(exclude={"folder", "gradient_checkpointing", *later})
        hashes = {path.name: hash_file(path) for path in files}
        return f"mini-{hash_json([_REVISION, settings, self.levels, self.seed, hashes])[:16]}"

    @property
    def vocabulary(self) -> Tensor:
        """``(V, d)`` the word embeddings, as they are now and without gradient."""
        embeddings: Tensor = self.transformer.embeddings.word_embeddings.weight.detach()
        return embeddings

    def index(
        self,
        items: Sequence[ItemContent],
        vectors: Floats | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> MiniIndex:
        texts = TextCollector(self._tokenizer, self.max_tokens)
        images = ImageCollector(self.image_tokens, str(self.codes.device)) if self.reads_images else None
        for block in blocks(items, advance):
            texts.add([item.text for item in block])
            if images is not None:
                images.add(block)
        return MiniIndex(texts.finish(), images.finish() if images is not None else None)

    def forward(self, batch: Batch) -> Tensor:
        real = batch["real"]  # (B, T)
        count, length = real.shape
        words = self.transformer.embeddings.word_embeddings(batch["tokens"])  # (B, T, d)
        parts, attended = [words], [real]
        if self.image_projection is not None:
            projected = self.image_projection(batch["images"] * CHANNELS**0.5)  # (B, I, d)
            parts.append(projected.to(words.dtype))
            attended.append(batch["seen"][:, None].expand(count, self.image_tokens))
        parts.append(self.codes.expand(count, -1, -1))
        attended.append(real.new_ones(count, self.levels))

        tail = torch.arange(self.image_tokens + self.levels, device=real.device) + self.max_tokens
        positions = torch.cat([torch.arange(length, device=real.device), tail])[None] + self._offset
        mask = torch.cat(attended, 1)[:, None, None]  # (B, 1, 1, T + I + L): keys; the same for every query
        if self.options.independent:
            places = torch.arange(mask.shape[-1], device=real.device)
            content = places < mask.shape[-1] - self.levels
            mask = mask & (content | (places[:, None] == places))
        states = self._layers(torch.cat(parts, 1), positions, mask)  # (B, T + I + L, d)
        hidden = states[:, -self.levels :].float()
        if self.options.start == "mean":
            weights = real[..., None].float()  # (B, T, 1); never all zero, since the specials are real
            hidden = hidden + (states[:, :length].float() * weights).sum(1, keepdim=True) / weights.sum(
                1, keepdim=True
            )
        return hidden

    def saved(self) -> Mapping[str, Tensor]:
        """Learning weights only; frozen layers are read from their package again."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        take_weights(self.saved(), weights, "mini")

    def _layers(self, inputs: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """The transformer on embedded tokens. Layer by layer, so that a mask is neither looked at on the host
        nor rebuilt, and checkpointing does not depend on the library's version."""
        states: Tensor = self.transformer.embeddings(inputs_embeds=inputs, position_ids=positions)
        again = self.options.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.transformer.encoder.layer:
            states = checkpoint(layer, states, mask, use_reentrant=False) if again else layer(states, mask)
        return states

    def _fit_positions(self, positions: int) -> int:
        """Tokens a text may have beside the image and code tokens, of `positions` in all."""
        left = positions - self.image_tokens - self.levels
        if left <= SPECIALS:
            raise user_error(
                f"{self.levels} code tokens and {self.image_tokens} image tokens leave no room for text",
                place=self.folder / "config.json",
                value=positions,
                allowed="a transformer with more positions",
                remedy="lower the number of levels, or name another folder",
            )
        return min(self.options.max_tokens, left)

    def _freeze(self, layers: int) -> None:
        frozen = self.options.frozen_layers
        if frozen > layers:
            raise user_error(
                "more layers are frozen than there are",
                place="encoder.frozen_layers",
                value=frozen,
                allowed=f"0 to {layers}",
                remedy="lower frozen_layers",
            )
        if frozen:
            self.transformer.embeddings.requires_grad_(False)
            self.transformer.encoder.layer[:frozen].requires_grad_(False)


def load_transformer(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and transformer (float32, in training mode, without pooling head) of a folder.

    Raises:
        CatalexError: When a file is missing or damaged, or it is not a BERT-like model.
    """
    config = _load("configuration", folder, lambda t: t.AutoConfig.from_pretrained(folder))
    if config.model_type not in POSITION_OFFSETS or getattr(config, "is_decoder", False):
        raise user_error(
            "this transformer cannot carry code tokens",
            place=folder / "config.json",
            value=config.model_type,
            allowed=sorted(POSITION_OFFSETS),
            remedy="name a folder with a BERT-like encoder, or use encoder 'frozen' on its vectors",
        )
    tokenizer = _load("tokenizer", folder, lambda t: t.AutoTokenizer.from_pretrained(folder))
    missing = [name for name in ("cls", "sep", "pad") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise user_error(
            "the tokenizer lacks special tokens",
            place=folder,
            value=missing,
            remedy="add them and save it again",
        )
    model = _load(
        "weights",
        folder,
        lambda t: t.AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, attn_implementation="sdpa"
        ),
    )
    model.pooler = None  # its weights would never get a gradient
    return tokenizer, model.train()
