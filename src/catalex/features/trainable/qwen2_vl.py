"""The encoder ``qwen2-vl``: a vision-language model of the Qwen family that reads image and text of an item.

UTGRec (arXiv 2504.04405, section 2.2.1) trains Qwen2-VL-2B with LoRA: the prompt ends in L new tokens whose
last hidden states represent the item. B items, T tokens of a prompt, L codes, d width of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.artifacts import hash_file, hash_json, read_json
from catalex.errors import user_error
from catalex.features.base import ItemContent
from catalex.features.trainable.adaptation import (
    AdaptationOptions,
    adapt,
    restore_trained,
    train_in_float32,
    trained_weights,
)
from catalex.features.trainable.base import Batch, TrainableEncoder
from catalex.features.trainable.image_patches import PatchImages, PatchSettings
from catalex.features.trainable.prompts import (
    IMAGE_PAD,
    VISION_END,
    VISION_START,
    Prompt,
    PromptIndex,
    byte_tokenizer,
    causal_mask,
    text_tokens,
)
from catalex.features.trainable.qwen2_vl_paper import PAPER_CONFIG, PAPER_NAME
from catalex.features.transformer_text import _load as load_part
from catalex.features.transformer_text import find_folder
from catalex.types import Floats

FAMILY = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types that are understood: they share prompts, patches and positions."""

_REVISION = 1


class QwenVLOptions(AdaptationOptions):
    """Which checkpoint, what of it is trained, and how much of an item it reads."""

    checkpoint: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Hugging Face id or folder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint (UTGRec: Qwen2-VL-2B)."""

    random_weights: bool = False
    """Build the model from `config` with random weights: for tests, and to measure time and memory."""

    config: dict[str, Any] | Literal["qwen2-vl-2b"] | None = None
    """Configuration of a model with random weights: as in a checkpoint's config.json, or the published one of
    Qwen2-VL-2B. None reads the checkpoint's."""

    tokenizer: str | None = None
    """Folder of another tokenizer, for random weights only. None takes the checkpoint's, or one token a byte
    when `config` is given."""

    max_image_pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Larger images are shrunk. 784 pixels are one token, so the default means at most 256 image tokens (the
    size of a product picture of 448 x 448); our choice, the paper states none."""

    train_vision: bool = False
    """Train the vision tower too. UTGRec adapts the text tower only."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of the weights that are not trained, and of the arithmetic (UTGRec's code: bf16)."""

    gradient_checkpointing: bool = True
    """Recompute each layer in the backward pass: about a third slower, far less memory. Same gradients."""


class QwenVLEncoder(TrainableEncoder):
    """Prompt with image and text -> last hidden states of the L code tokens ``(B, L, d)`` in float32.

    Raises:
        CatalexError: When the checkpoint cannot be found or read, or is no model of the family.
    """

    Options = QwenVLOptions
    reads_images = True

    def __init__(self, options: QwenVLOptions, levels: int, seed: int = 0) -> None:
        super().__init__()
        if find_spec("PIL") is None:  # later it would look as if no image could be read
            raise user_error(
                "the package 'PIL' is not installed", remedy="run: pip install 'catalex[images]'"
            )
        self.options, self.levels, self._seed = options, levels, seed
        self._dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
        self._folder = _folder_of(options)
        config = _read_config(options, self._folder)
        self._tokenizer = _read_tokenizer(options, self._folder)
        if options.random_weights:
            _match_tokens(config, self._tokenizer)
        self._config = config
        self.width = int(config.text_config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: everything is built there
            self.model = _build(config, options, self._folder, self._dtype)
            self._embeddings = [
                adapt(self.model, options, levels, self._dtype)
            ]  # a list: no second registration
        if options.train_vision:
            self.model.visual.requires_grad_(True)
            train_in_float32(self.model.visual)
        self.patches = _patch_settings(config, options, self._folder)

    @cached_property
    def fingerprint(self) -> str:
        source = (
            [self._seed, self._config.to_dict()]
            if self.options.random_weights
            else {
                file.name: hash_file(file)
                for pattern in ("*.safetensors", "*.json", "*.txt")
                for file in sorted((self._folder or Path()).glob(pattern))
            }
        )
        settings = self.options.model_dump(
            exclude={"checkpoint", "config", "tokenizer", "gradient_checkpointing"}
        )
        digest = hash_json([_REVISION, self.levels, settings, source, self._tokenizer.get_vocab()])
        return f"qwen-vl-{self._config.model_type}-{digest[:16]}"

    @property
    def vocabulary(self) -> Tensor:
        return self._embeddings[0].words.weight

    def index(
        self,
        items: Sequence[ItemContent],
        vectors: Floats | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> PromptIndex:
        del vectors  # an encoder of raw content
        marks = tuple(self._tokenizer.convert_tokens_to_ids([VISION_START, VISION_END]))
        known = self._embeddings[0].words.num_embeddings
        prompt = Prompt(self._tokenizer, self.levels, "chat", known, self._config.image_token_id, marks)
        text = text_tokens(self._tokenizer, items, self.options.max_tokens)
        images = PatchImages(items, self.patches, advance)
        return PromptIndex(prompt, text, images, int(self._tokenizer.pad_token_id or 0))

    def forward(self, batch: Batch) -> Tensor:
        shown: dict[str, Tensor] = {}
        if "pixels" in batch:
            shown = {"pixel_values": batch["pixels"], "image_grid_thw": batch["grids"]}
        states = self.model(
            input_ids=batch["ids"],
            attention_mask=causal_mask(batch["mask"]),
            position_ids=batch["positions"].transpose(0, 1),  # (3, B, T), as the family wants them
            use_cache=False,
            **shown,
        ).last_hidden_state[:, -self.levels :]
        result: Tensor = states.float()
        if self.options.train_vision and not shown and self.training:
            result = result + _untouched(self.model.visual)
        return result

    def saved(self) -> Mapping[str, Tensor]:
        """LoRA, code rows and whatever else is trained; the checkpoint's own weights are not stored again."""
        return trained_weights(self)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        restore_trained(self, weights, "encoder qwen2-vl")


def _untouched(module: nn.Module) -> Tensor:
    """A zero that depends on every weight: processes of one training must all send gradients for all of them,
    even those whose batch shows no image."""
    return 0.0 * torch.stack([weight.flatten()[0] for weight in module.parameters()]).sum()


def _folder_of(options: QwenVLOptions) -> Path | None:
    """The checkpoint's folder, or None when configuration and weights come from the options alone."""
    if options.config is not None and not options.random_weights:
        raise user_error(
            "a config is used with random weights only",
            place="encoder qwen2-vl",
            remedy="set random_weights: true, or remove config",
        )
    return (
        None
        if options.config is not None
        else find_folder(options.checkpoint, "encoder qwen2-vl, checkpoint")
    )


def _read_config(options: QwenVLOptions, folder: Path | None) -> Any:
    """The checked configuration."""
    place: str | Path = folder or "encoder qwen2-vl, config"
    if folder is not None:
        found = read_json(folder / "config.json")
    else:
        found = PAPER_CONFIG if options.config == PAPER_NAME else options.config
    kind = found.get("model_type") if isinstance(found, Mapping) else None
    if kind not in FAMILY:
        raise user_error(
            "this is no vision-language model of the Qwen family",
            place=place,
            value=kind,
            allowed=f"model_type {', '.join(FAMILY)}",
            remedy="name a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint, or choose another encoder",
        )
    settings = {key: value for key, value in found.items() if key != "model_type"}
    return load_part("configuration", Path(place), lambda t: t.AutoConfig.for_model(kind, **settings))


def _read_tokenizer(options: QwenVLOptions, folder: Path | None) -> Any:
    """The tokenizer, which has to know the family's control tokens."""
    if options.tokenizer is not None:
        folder = find_folder(options.tokenizer, "encoder qwen2-vl, tokenizer")
    if folder is None:
        return byte_tokenizer()
    tokenizer = load_part("tokenizer", folder, lambda t: t.AutoTokenizer.from_pretrained(folder))
    wanted = [VISION_START, VISION_END, IMAGE_PAD]
    absent = [token for token in wanted if token not in tokenizer.get_vocab()]
    if absent and options.random_weights:
        tokenizer.add_tokens(absent, special_tokens=True)
    elif absent:
        raise user_error(
            f"the tokenizer does not know {absent[0]!r}",
            place=folder,
            allowed="the tokenizer of a vision-language checkpoint",
            remedy="copy the checkpoint's tokenizer files into the folder",
        )
    return tokenizer


def _match_tokens(config: Any, tokenizer: Any) -> None:
    """Give a random model the ids of its tokenizer, and room for them."""
    ids = tokenizer.get_vocab()
    config.image_token_id = ids[IMAGE_PAD]
    config.vision_start_token_id, config.vision_end_token_id = ids[VISION_START], ids[VISION_END]
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))


def _build(config: Any, options: QwenVLOptions, folder: Path | None, dtype: torch.dtype) -> Any:
    """The model without a language head."""
    if options.random_weights:
        return load_part(
            "configuration", folder or Path("config"), lambda t: t.AutoModel.from_config(config, dtype=dtype)
        )
    assert folder is not None
    model, report = load_part(
        "weights",
        folder,
        lambda t: t.AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        ),
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise user_error(
            "the weights do not fit the configuration",
            place=folder,
            value=min(map(str, [*report["missing_keys"], *report["mismatched_keys"]])),
            allowed="every weight of the model that config.json describes",
            remedy="download the checkpoint again",
        )
    return model


def _patch_settings(config: Any, options: QwenVLOptions, folder: Path | None) -> PatchSettings:
    """How this checkpoint cuts images: sizes from the vision tower, normalisation from its preprocessor."""
    vision = config.vision_config
    stated: dict[str, Any] = {}
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        stated = read_json(folder / "preprocessor_config.json")
    plain = PatchSettings()
    usual = ((0.5,) * 3, (0.5,) * 3) if config.model_type == "qwen3_vl" else (plain.mean, plain.std)
    return PatchSettings(
        patch=int(vision.patch_size),
        merge=int(vision.spatial_merge_size),
        temporal=int(vision.temporal_patch_size),
        mean=tuple(stated.get("image_mean", usual[0])),
        std=tuple(stated.get("image_std", usual[1])),
        min_pixels=min(plain.min_pixels, options.max_image_pixels),
        max_pixels=options.max_image_pixels,
    )
