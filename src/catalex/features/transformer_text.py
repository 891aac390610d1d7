"""Text vectors from any transformer folder: tokens -> last hidden states -> pooled -> L2-normalised."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError

from catalex.artifacts import hash_file, hash_json, read_json
from catalex.errors import CatalexError, user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.features.text import clean
from catalex.options import Options
from catalex.types import Floats

PREFIX = "hf:"
Pooling = Literal["mean", "cls"]
_REVISION = 2  # raise when this file's mathematics changes, so that old cache entries are not mixed with new
_WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]


class TransformerTextOptions(Options):
    """How a transformer turns a text into a vector."""

    max_tokens: int = Field(default=128, ge=4)
    """Tokens read from each text, specials included; lowered to what the model's positions allow.
    sentence-transformers trained all-MiniLM-L6-v2 with 128."""

    pooling: Literal["auto", "mean", "cls"] = "auto"
    """``mean`` over the real tokens, or the first token's state (``cls``); ``auto`` follows the folder's
    ``1_Pooling/config.json`` and is ``mean`` without one (Reimers & Gurevych 2019, section 3)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the transformer; pooling and normalisation are always fp32. ``auto`` is bf16 where the
    processor or GPU computes it natively (2 to 4 times faster, cosine to fp32 at least 0.9999), else fp32."""


ROWS = 32
"""Texts in one forward pass. Fixed, because in bf16 the rounding of a product depends on its shape."""

STEP = 16
"""Texts are padded to a multiple of this many tokens, whatever else is in their batch; same reason."""


class TransformerText(ContentEncoder):
    """The encoder ``hf:<id or folder>``: a transformer folder with config, tokenizer and safetensors weights.

    The weights are loaded by the first `encode`, so a run whose vectors are all cached never reads them.
    """

    Options = TransformerTextOptions

    def __init__(
        self, folder: Path, options: TransformerTextOptions, device: str = "cpu", name: str | None = None
    ) -> None:
        self.folder, self.options, self.device = folder, options, device
        self.name = name or f"hf-{folder.name}"
        self._config = _load(
            "configuration", folder, lambda transformers: transformers.AutoConfig.from_pretrained(folder)
        )
        self._width = int(self._config.hidden_size)
        positions = getattr(self._config, "max_position_embeddings", None)
        self.max_tokens = min(options.max_tokens, positions or options.max_tokens)
        self.pooling = declared_pooling(folder) if options.pooling == "auto" else options.pooling
        self.precision = native_precision(device) if options.precision == "auto" else options.precision
        self._fingerprint: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def fingerprint(self) -> str:
        """Name and hash of weights, tokenizer and settings; the device is left out on purpose."""
        if self._fingerprint is None:
            files = [*sorted(self.folder.glob("*.safetensors")), *sorted(self.folder.glob("*token*.json"))]
            files += [
                self.folder / name for name in ("config.json", "vocab.txt") if (self.folder / name).is_file()
            ]
            settings = [_REVISION, self.max_tokens, self.pooling, self.precision]
            digest = hash_json([settings, {file.name: hash_file(file) for file in files}])
            self._fingerprint = (
                f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name)}-{self.precision}-{digest[:16]}"
            )
        return self._fingerprint

    @property
    def width(self) -> int:
        return self._width

    def encode(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None) -> Floats:
        """Vectors ``(N, D)``; an item without text gets the zero vector.

        Every forward pass has the shape ``(ROWS, T)`` with T the text's own length rounded up, and short
        batches are filled: a vector depends on its text alone, to the last bit, not on its companions.
        """
        vectors = np.zeros((len(items), self.width), np.float32)
        texts = [clean(item.text) for item in items]
        full = [row for row, text in enumerate(texts) if text]
        if advance is not None and len(full) < len(items):
            advance(len(items) - len(full))
        if not full:
            return vectors
        self._ensure_loaded()
        tokens: list[list[int]] = self._tokenizer(
            [texts[row] for row in full],
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
        )["input_ids"]
        lengths = np.array([-(-len(one) // STEP) * STEP for one in tokens])
        for length in np.unique(lengths):
            members = np.flatnonzero(lengths == length)
            for start in range(0, len(members), ROWS):
                chosen = members[start : start + ROWS]
                vectors[[full[position] for position in chosen]] = self._forward(
                    [tokens[position] for position in chosen], int(length)
                )
                if advance is not None:
                    advance(len(chosen))
        return vectors

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]], length: int) -> Floats:
        """Normalised vectors ``(B, D)`` of B token lists, in a batch of ROWS texts of `length` tokens."""
        longest = min(length, self.max_tokens)
        ids = torch.full((ROWS, longest), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros((ROWS, longest), dtype=torch.int64)
        mask[len(tokens) :, 0] = 1  # a filler text of one token, so that no row is all padding
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        mask = mask.to(self.device)
        states = self._model(
            input_ids=ids.to(self.device), attention_mask=mask
        ).last_hidden_state.float()  # (B, T, D)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).float()  # (B, T, 1)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        result: Floats = torch.nn.functional.normalize(pooled, dim=-1)[: len(tokens)].cpu().numpy()
        return result

    def _ensure_loaded(self) -> None:
        if self._model is not None:
            return
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        # an encoder-decoder (sentence-T5) is read by its encoder alone
        kind = (
            "AutoModelForTextEncoding" if getattr(self._config, "is_encoder_decoder", False) else "AutoModel"
        )
        self._tokenizer = _load(
            "tokenizer", self.folder, lambda t: t.AutoTokenizer.from_pretrained(self.folder)
        )
        model = _load(
            "weights",
            self.folder,
            lambda t: getattr(t, kind).from_pretrained(self.folder, dtype=dtype, use_safetensors=True),
        )
        self._model = model.eval().requires_grad_(False).to(self.device)


def _load(what: str, folder: Path, read: Callable[[Any], Any]) -> Any:
    """`read(transformers)`, with the library's many exceptions turned into one sentence."""
    import transformers  # slow to import and not needed when all vectors are cached

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # `Track` is the one progress bar
    try:
        return read(transformers)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = (
            str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        )
        raise user_error(
            f"the {what} of the encoder cannot be read ({reason})",
            place=folder,
            allowed="a transformers folder with config.json, tokenizer files and model.safetensors",
            remedy="check the folder, or save the model again with save_pretrained",
        ) from None
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def declared_pooling(folder: Path) -> Pooling:
    """The pooling that a sentence-transformers folder declares; ``mean`` when it declares none.

    Raises:
        CatalexError: When the folder asks for a pooling or a further layer that is not implemented here.
    """
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    for module in modules:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise user_error(
                "this sentence-transformers folder has a further layer that catalex does not apply",
                place=folder / "modules.json",
                value=kind,
                allowed="Transformer, Pooling, Normalize",
                remedy="choose another encoder, or set pooling explicitly after removing modules.json",
            )
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    flags = read_json(path)
    active = sorted(key for key, value in flags.items() if key.startswith("pooling_mode_") and value is True)
    if active == ["pooling_mode_mean_tokens"] or flags.get("pooling_mode") == "mean":
        return "mean"
    if active == ["pooling_mode_cls_token"] or flags.get("pooling_mode") == "cls":
        return "cls"
    raise user_error(
        "the folder declares a pooling that is not supported",
        place=path,
        value=active or flags.get("pooling_mode"),
        allowed="mean tokens or cls token",
        remedy="set pooling: mean or pooling: cls in the recipe",
    )


def native_precision(device: str) -> Literal["fp32", "bf16"]:
    """bf16 where `device` has it in hardware (CUDA since Ampere; CPU with AMX or AVX512-BF16), else fp32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device != "cpu":
        return "fp32"
    checks = (
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return "bf16" if any(check() for check in checks if check is not None) else "fp32"


def find_folder(reference: str, place: str) -> Path:
    """The folder of ``hf:<reference>``: a path, else the Hugging Face cache, else (when online) a download.

    Raises:
        CatalexError: When there is no such folder and the model cannot be had.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", reference) is None or reference.startswith("."):
        raise user_error(
            "there is no such folder", place=place, value=reference, remedy="check the path after 'hf:'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=True, allow_patterns=_WANTED_FILES))
    except (LocalEntryNotFoundError, HFValidationError):
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _not_found(reference, place, "HF_HUB_OFFLINE is set") from None
    try:
        return Path(snapshot_download(reference, allow_patterns=_WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _not_found(reference, place, type(error).__name__) from None


def _not_found(reference: str, place: str, reason: str) -> CatalexError:
    return user_error(
        f"encoder {PREFIX + reference!r} is neither a folder nor in the local Hugging Face cache, "
        f"and could not be downloaded ({reason})",
        place=place,
        remedy="name a folder that holds the model, or download it first on a machine that is online",
    )
