"""The folder of a T5 model: our weights under the names of ``transformers.T5ForConditionalGeneration``.

A folder that `save_t5` wrote opens in transformers, and one that transformers saved opens here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.errors import user_error
from catalex.models.t5 import BUCKETS, MAX_DISTANCE, PAD, T5, T5Options


def _names(o: T5Options) -> list[tuple[str, list[str]]]:
    """Pairs (our parameter, transformers' parameters that it stacks along the first axis)."""
    pairs = [
        ("embedding.weight", ["shared.weight"]),
        ("encoder_bias.weight", ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]),
        ("decoder_bias.weight", ["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]),
        ("encoder_norm.weight", ["encoder.final_layer_norm.weight"]),
        ("decoder_norm.weight", ["decoder.final_layer_norm.weight"]),
    ]
    for i in range(o.layers):
        for stack, last in (("encoder", 1), ("decoder", 2)):
            ours, theirs = f"{stack}.{i}", f"{stack}.block.{i}.layer"
            pairs += [
                (f"{ours}.attention_norm.weight", [f"{theirs}.0.layer_norm.weight"]),
                (f"{ours}.attention.qkv.weight", [f"{theirs}.0.SelfAttention.{n}.weight" for n in "qkv"]),
                (f"{ours}.attention.out.weight", [f"{theirs}.0.SelfAttention.o.weight"]),
                (f"{ours}.feed_forward_norm.weight", [f"{theirs}.{last}.layer_norm.weight"]),
                (f"{ours}.feed_forward.wi.weight", [f"{theirs}.{last}.DenseReluDense.wi.weight"]),
                (f"{ours}.feed_forward.wo.weight", [f"{theirs}.{last}.DenseReluDense.wo.weight"]),
            ]
        ours, theirs = f"decoder.{i}", f"decoder.block.{i}.layer.1"
        pairs += [
            (f"{ours}.cross_norm.weight", [f"{theirs}.layer_norm.weight"]),
            (f"{ours}.cross.q.weight", [f"{theirs}.EncDecAttention.q.weight"]),
            (f"{ours}.cross.kv.weight", [f"{theirs}.EncDecAttention.{n}.weight" for n in "kv"]),
            (f"{ours}.cross.out.weight", [f"{theirs}.EncDecAttention.o.weight"]),
        ]
    return pairs


def state_for_transformers(model: T5) -> dict[str, np.ndarray[Any, Any]]:
    """The weights under the names of ``transformers.T5ForConditionalGeneration``."""
    state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    found: dict[str, np.ndarray[Any, Any]] = {}
    for ours, theirs in _names(model.options):
        for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            found[name] = part.contiguous().numpy()
    return found


def load_state_from_transformers(model: T5, arrays: dict[str, np.ndarray[Any, Any]], place: Path) -> None:
    """Copy weights named as transformers names them into `model`.

    Raises:
        CatalexError: When an array is missing or has another shape.
    """
    state = model.state_dict()
    for ours, theirs in _names(model.options):
        for name in theirs:
            if name not in arrays:
                raise user_error(
                    f"weight {name!r} is missing", place=place, remedy="use a folder that catalex saved"
                )
        joined = torch.cat([torch.from_numpy(np.array(arrays[name])) for name in theirs])
        if joined.shape != state[ours].shape:
            raise user_error(
                f"weight {theirs[0]!r} has the wrong shape",
                place=place,
                value=tuple(joined.shape),
                allowed=str(tuple(state[ours].shape)),
            )
        state[ours] = joined
    model.load_state_dict(state)


def save_t5(model: T5, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` as transformers writes them (so it can read them)."""
    o = model.options
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": model.vocabulary,
        "d_model": o.hidden,
        "d_kv": o.head_width,
        "d_ff": o.feed_forward,
        "num_layers": o.layers,
        "num_decoder_layers": o.layers,
        "num_heads": o.heads,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "dropout_rate": o.dropout,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "pad_token_id": PAD,
        "decoder_start_token_id": PAD,
        "eos_token_id": model.vocabulary - 1,
    }
    write_json(folder / "config.json", config)
    write_arrays(folder / "model.safetensors", state_for_transformers(model), {"format": "pt"})


def load_t5(folder: Path) -> T5:
    """Read a model that `save_t5` (or transformers' `save_pretrained`) wrote.

    Raises:
        CatalexError: When a file is missing, damaged, or is not a T5 of version 1.0.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "t5" or config.get("feed_forward_proj", "relu") != "relu":
        raise user_error(
            "this is not a T5 model of version 1.0 (ReLU)",
            place=folder / "config.json",
            value=config.get("model_type"),
        )
    options = T5Options(
        layers=config["num_layers"],
        hidden=config["d_model"],
        feed_forward=config["d_ff"],
        heads=config["num_heads"],
        head_width=config["d_kv"],
        dropout=config["dropout_rate"],
    )
    model = T5(config["vocab_size"], options)
    load_state_from_transformers(
        model, read_arrays(folder / "model.safetensors"), folder / "model.safetensors"
    )
    return model.eval()
