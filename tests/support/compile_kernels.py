"""Compiles the decoder's Triton kernels for an H100, which needs none; run with the name of one of `KERNELS`.

A process of its own, because Triton either interprets or compiles, and the tests interpret.
"""

from __future__ import annotations

import sys
from typing import Any

INTS, FLOATS, HALVES = "*i32", "*fp32", "*bf16"
TILE, IN, OUT = (
    f"tensordesc<bf16[{rows}, {columns}]>" for rows, columns in ((128, 128), (128, 64), (64, 128))
)
SIZES = {"H": 128, "HEADS": 6, "PARTS": 1, "SPLITS": 1, "PRECISION": "ieee"}
LISTS = {"name_ptr": INTS, "score_ptr": FLOATS, "origin_ptr": INTS}
OUTS = {f"out_{name}": kind for name, kind in LISTS.items()}
STREAMS = {"x_ptr": FLOATS, "to_ptr": FLOATS, "lengths_ptr": INTS}
EXPAND = {
    **LISTS, **OUTS, "logits_ptr": FLOATS, "log_sums_ptr": FLOATS, "starts_ptr": INTS, "tokens_ptr": INTS,
    "items_ptr": INTS, "opened_ptr": "*i16", "chosen_ptr": INTS,
}  # fmt: skip
CLOSE = {
    **LISTS, "excluded_ptr": "*i64", "leaf_of_ptr": INTS, "above_ptr": INTS, "above_at_ptr": INTS,
    "edges_ptr": INTS, "tokens_ptr": INTS, "logits_ptr": FLOATS,
}  # fmt: skip

KERNELS: dict[str, tuple[str, dict[str, str], dict[str, Any], int]] = {
    "encoder": (
        "attention.encoder_attention",
        {**STREAMS, "qkv_ptr": HALVES, "out_ptr": HALVES, "bias_ptr": FLOATS},
        {**SIZES, "D": 64, "BLOCK": 64, "FAR": 128},
        4,
    ),
    "self": (
        "attention.self_attention",
        {**STREAMS, "read": TILE, "write": TILE, "bias_ptr": FLOATS, "cache_ptr": HALVES,
         "ancestors_ptr": INTS, "slot": "i64"},
        {**SIZES, "P": 3, "POSITION": 2, "BLOCK": 32, "STAGES": 2},
        4,
    ),
    "cross": (
        "attention.cross_attention",
        {**STREAMS, "encoded_ptr": HALVES, "read": TILE, "write": TILE},
        {**SIZES, "BLOCK": 64, "KEYS": 64, "TILES": 1, "STAGES": 1},
        4,
    ),
    "feed-forward": (
        "feed_forward.feed_forward",
        {"x_ptr": FLOATS, "out_ptr": FLOATS, "wi": IN, "wo": OUT},
        {**SIZES, "F": 1024, "CHUNK": 64, "BLOCK": 64, "STAGES": 3},
        4,
    ),
    "head": (
        "head.head",
        {"x_ptr": FLOATS, "w": IN, "logits_ptr": FLOATS, "log_sums_ptr": FLOATS},
        {**SIZES, "SHARE": 832, "CHUNK": 64, "BLOCK": 64, "STAGES": 3},
        4,
    ),
    "expand": (
        "selection.expand",
        EXPAND,
        {"WIDTH": 64, "BEAMS": 64, "CHILDREN": 128, "PARTS": 1, "LOGS": 2, "MASKED": False, "LAST": False},
        4,
    ),
    "expand, masked": (
        "selection.expand",
        EXPAND,
        {"WIDTH": 64, "BEAMS": 64, "CHILDREN": 16, "PARTS": 1, "LOGS": 1, "MASKED": True, "LAST": True},
        4,
    ),
    "narrow": ("selection.narrow", {**LISTS, **OUTS}, {"WIDTH": 64, "N": 256, "LAST": True}, 4),
    "close": (
        "selection.close",
        CLOSE,
        {"E": 32, "WIDTH": 64, "BEAMS": 32, "DEPTH": 1, "LEVELS": 4},
        4,
    ),
}  # fmt: skip


def main(name: str) -> None:
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place, kinds, constants, warps = KERNELS[name]
    module, function = place.split(".")
    kernel = getattr(import_module(f"catalex.decoding.engine.kernels.{module}"), function)
    signature, values = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(index,)] = "constexpr", constants[argument]
        else:
            signature[argument] = kinds.get(argument, "i32")
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(len(made.asm["cubin"]), "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
