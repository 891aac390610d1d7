"""The published configuration of Qwen2-VL-2B, and a check of the paper's encoder that needs no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from catalex.features.trainable.qwen2_vl import QwenVLEncoder

PAPER_NAME: Final = "qwen2-vl-2b"

PAPER_PARAMETERS = 2_208_985_600
"""Weights of Qwen2-VL-2B with its tied head, vision tower included."""

PAPER_CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "tie_word_embeddings": True,
}
"""config.json of Qwen/Qwen2-VL-2B-Instruct in the names of transformers 5 (arXiv 2409.12191, table 1)."""


def paper_encoder_on_meta(levels: int = 3) -> QwenVLEncoder:
    """The paper's encoder with LoRA and code rows, on the meta device: shapes and sizes without memory.

    Its `index` works as always, so prompts and patches of a catalogue can be checked as well.
    """
    from catalex.features.trainable.qwen2_vl import QwenVLEncoder, QwenVLOptions

    with torch.device("meta"):
        return QwenVLEncoder(QwenVLOptions(random_weights=True, config=PAPER_NAME), levels)
