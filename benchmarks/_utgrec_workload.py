"""What `utgrec_cost.py` measures: an encoder, made-up items of a stated size, and the bare encoder beside it.

Texts are random words cut to exactly T tokens, latents are normal, image features or pictures are random:
time depends on sizes alone. Without weights at hand the models are built at their published sizes.
"""

from __future__ import annotations

import copy
import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalex.data.histories import Histories
from catalex.features.base import ItemContent
from catalex.features.latents import LatentIndex
from catalex.features.trainable import TrainableEncoder, make_trainable_encoder
from catalex.features.trainable.base import Batch, ContentIndex
from catalex.features.trainable.image_features import CHANNELS, ImageFeatures
from catalex.features.trainable.mini import MiniEncoder, MiniIndex
from catalex.features.trainable.prompts import TURN_END, TURN_START, PromptIndex
from catalex.features.trainable.qwen2_vl_paper import PAPER_CONFIG
from catalex.features.trainable.smolvl import FeatureImages, SmolVLEncoder
from catalex.features.trainable.text_index import TextCollector
from catalex.tokenizers.positives import Positives
from catalex.tokenizers.utgrec_network import LatentShape, UTGRecNetwork
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.tokenizers.utgrec_training import Material

LATENTS = LatentShape(256, 16)
"""Of KL-16, the paper's image target."""
VECTORS = 384
"""Width of the frozen content vectors, MiniLM's; making them is not part of this."""
PICTURES = 8
"""Different pictures; items share them, as only their size matters."""
HISTORY = 8
"""Items of a made-up user."""

PRODUCTS = (
    "red kite with a long tail for windy days kitchen knife of hardened steel guitar strings nickel wound "
    "yoga mat non slip green garden hose brass nozzle wool socks winter warm cotton shirt black leather"
)
_WORDING = (
    "user\nCompress this product text into 3 codes, coarse to fine.\nassistant\n"
    "Compress this product, picture and text, into 3 codes, coarse to fine."
)
"""Lets the tokenizer that is made here know the words of prompts whole, as a real one does."""

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "intermediate_size": 1536}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def make_encoder(a: Namespace, options: UTGRecOptions, device: str) -> TrainableEncoder:
    """The encoder on `device`; built there when it is large and random, which is far quicker."""
    large = a.encoder == "qwen2-vl" and not a.folder
    with torch.device(device if large else "cpu"):
        return make_trainable_encoder(options.encoder, "encoder", levels=options.levels, seed=0)


def encoder_settings(a: Namespace, scratch: Path) -> dict[str, Any]:
    """The block of a recipe; models without weights are written to the folder `scratch` first."""
    settings: dict[str, Any] = {"name": a.encoder, "max_tokens": a.text_tokens}
    if a.checkpointing is not None:
        settings["gradient_checkpointing"] = a.checkpointing == "yes"
    if a.encoder == "qwen2-vl":
        if a.folder:
            return settings | {"checkpoint": a.folder}
        small_tokenizer().save_pretrained(scratch)
        config = tiny_qwen() if a.tiny else PAPER_CONFIG
        return settings | {"random_weights": True, "config": config, "tokenizer": str(scratch)}
    settings["images"] = "efficientnet-lite0" if a.images else "none"
    if a.encoder == "mini":
        settings["max_tokens"] += 2  # it counts the two specials
    folder = a.folder
    if folder is None and (a.tiny or a.random_weights):
        write_random(a.encoder, scratch, tiny=a.tiny)
        folder = str(scratch)
    return settings | ({"folder": folder} if folder else {})


def make_material(a: Namespace, encoder: TrainableEncoder, items: int) -> Material:
    """`items` items of T tokens each, a share of them with an image, and users who took them at random."""
    random = np.random.default_rng(0)
    pictured = random.permutation(items) < round(a.images * items)
    texts = [" ".join(random.choice(PRODUCTS.split(), a.text_tokens + 8)) for _ in range(items)]
    index = _index(a, encoder, texts, pictured)
    assert index.text is not None
    found = int(np.diff(index.text.offsets).max())
    if found != a.text_tokens:
        raise SystemExit(f"this encoder reads at most {found} tokens of a text; lower --text-tokens")
    users = [random.permutation(items)[:HISTORY].tolist() for _ in range(items)]
    latents = None
    if a.images:
        drawn = torch.randn(int(pictured.sum()), 1, *LATENTS, generator=torch.Generator().manual_seed(0))
        latents = LatentIndex(pictured, 0, drawn.half())
    vectors = torch.from_numpy(random.normal(size=(items, VECTORS)).astype(np.float32))
    positives = Positives.of([Histories.from_lists(users)], [items])
    return Material(index, positives, vectors=vectors, latents=latents)


def make_network(a: Namespace, options: UTGRecOptions, device: str) -> UTGRecNetwork:
    encoder = make_encoder(a, options, device)
    latents = LATENTS if a.images else None
    network = UTGRecNetwork(encoder, options, seed=0, latents=latents, vectors_width=VECTORS)
    return network.to(device).train()


def _index(a: Namespace, encoder: Any, texts: list[str], pictured: np.ndarray[Any, Any]) -> ContentIndex:
    if a.encoder == "qwen2-vl":
        files = pictures(a.image_side) if a.images else [b""]
        shown = [files[row % len(files)] if seen else None for row, seen in enumerate(pictured)]
        items = [ItemContent(text, image) for text, image in zip(texts, shown, strict=True)]
        found: ContentIndex = encoder.index(items)
        return found
    features = None
    if a.images:  # drawn, not computed: the image network is no part of training
        each = encoder.options.image_tokens
        vectors = np.random.default_rng(0).normal(size=(int(pictured.sum()), each, CHANNELS))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        slots = np.where(pictured, np.cumsum(pictured) - 1, -1)
        features = ImageFeatures(vectors.astype(np.float16), slots, 0)
    if isinstance(encoder, MiniEncoder):
        collector = TextCollector(encoder._tokenizer, encoder.max_tokens)
        collector.add(texts)
        return MiniIndex(collector.finish(), features)
    plain: PromptIndex = encoder.index([ItemContent(text) for text in texts])
    if features is None:
        return plain
    assert plain.text is not None
    return PromptIndex(plain._prompt, plain.text, FeatureImages(features), plain._pad)


def pictures(side: int) -> list[bytes]:
    """JPEG files of smooth random colours."""
    from PIL import Image

    random = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((side, side)).save(stream, "JPEG")
        files.append(stream.getvalue())
    return files


# --- models without weights ---------------------------------------------------------------------------------


def small_tokenizer() -> Any:
    """A byte-level tokenizer that knows the words used here, with the specials that the encoders ask for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([PRODUCTS, f" {PRODUCTS}", _WORDING], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=TURN_END,
        pad_token="<|endoftext|>",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    tokenizer.add_tokens([TURN_START], special_tokens=True)
    return tokenizer


def write_random(encoder: str, folder: Path, *, tiny: bool) -> None:
    """Random weights at the sizes of MiniLM or SmolLM2-135M (or tiny ones) as a transformers folder."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if encoder == "mini":
        sizes = {**(TINY if tiny else MINILM), "vocab_size": 4096 if tiny else 30_522}
        BertModel(BertConfig(**sizes, max_position_embeddings=512)).save_pretrained(folder)
        return
    sizes = {**(TINY if tiny else SMOLLM2), "vocab_size": 4096 if tiny else 49_152}
    sizes["num_key_value_heads"] = 2 if tiny else 3
    rope = {"rope_type": "default", "rope_theta": 1e5}
    config = LlamaConfig(
        **sizes, rope_parameters=rope, tie_word_embeddings=True, max_position_embeddings=8192
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def tiny_qwen() -> dict[str, Any]:
    """Qwen2-VL with two layers of width 64, to see that everything runs."""
    text = {**PAPER_CONFIG["text_config"], **TINY, "vocab_size": 4096, "num_key_value_heads": 2}
    text |= {"bos_token_id": None, "eos_token_id": None}
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [2, 3, 3]}
    vision = {**PAPER_CONFIG["vision_config"], "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    return {**PAPER_CONFIG, "text_config": text, "vision_config": vision}


# --- the bare encoder ---------------------------------------------------------------------------------------


def bare_encoder(encoder: Any, dtype: torch.dtype, device: str) -> Callable[[Batch], Tensor]:
    """The same content through the plain transformers model, frozen, without code tokens: mean states.

    This is what the content vectors of other tokenizers cost.
    """
    from transformers import AutoModel

    levels = encoder.levels
    if isinstance(encoder, MiniEncoder):
        model: Any = copy.deepcopy(encoder.transformer)
    elif isinstance(encoder, SmolVLEncoder):
        model = AutoModel.from_pretrained(encoder._folder, dtype=dtype)
    else:
        with torch.device(device):
            model = AutoModel.from_config(encoder._config, dtype=dtype)
    model = model.to(device=device, dtype=dtype).eval()

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        if "tokens" in batch:
            states = model(input_ids=batch["tokens"], attention_mask=batch["real"].long())
            return states.last_hidden_state.float().mean(1)  # type: ignore[no-any-return]
        inputs: dict[str, Any] = {"attention_mask": batch["mask"][:, :-levels]}
        ids = batch["ids"][:, :-levels]
        if "pixels" in batch:
            inputs |= {"pixel_values": batch["pixels"].to(dtype), "image_grid_thw": batch["grids"]}
        if isinstance(encoder, SmolVLEncoder):  # image tokens have ids beyond the words
            ids = ids.clamp(max=model.config.vocab_size - 1)
        else:
            inputs["position_ids"] = batch["positions"][:, :, :-levels].transpose(0, 1)
        return model(input_ids=ids, use_cache=False, **inputs).last_hidden_state.float().mean(1)  # type: ignore[no-any-return]

    return run
