"""Random language models of a few thousand weights, saved as transformers saves real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CORPUS = [
    "red kite with a long tail for windy days",
    "kitchen knife of hardened steel, 20 cm",
    "guitar strings, nickel wound, light",
    "yoga mat, non slip, green",
]
CONTROL = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def byte_level_bpe(padding_side: str = "right") -> Any:
    """A byte-level BPE trained on `CORPUS`, with the control tokens of the Qwen family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side=padding_side,
    )
    tokenizer.add_tokens(CONTROL, special_tokens=True)
    return tokenizer


def tiny_config(kind: str, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Configuration of a two-layer model of 64 dimensions of the Qwen-VL family."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    if kind == "qwen3_vl":
        rope["mrope_interleaved"] = True
    text: dict[str, Any] = {
        "vocab_size": len(vocabulary) + 5,  # spare rows, as the published tables have
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": 0.1,
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "initializer_range": 0.1}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    elif kind == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    else:
        text["head_dim"] = 16
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "patch_size": 16}
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return {
        "model_type": kind,
        "text_config": text,
        "vision_config": vision,
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def tiny_qwen(folder: Path, kind: str = "qwen2_vl", seed: int = 0) -> Path:
    """A checkpoint folder with a language head, as published ones have."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tokenizer = byte_level_bpe()
    settings = tiny_config(kind, tokenizer.get_vocab())
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Llama checkpoint folder, as the unpacked SmolLM2 is one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_bpe()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
