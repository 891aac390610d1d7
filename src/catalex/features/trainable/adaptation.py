"""Which weights of a language model are trained (LoRA, all, code rows), and how just those are stored."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.errors import user_error
from catalex.options import Options, Positive, Rate

EXTRA = "llm"
"""Extra of the package that brings peft and gguf."""

_TEXT_LINEARS = r"(.*language_model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj"
"""Linear layers of a text tower, alone or inside a vision-language model; never of the vision tower."""


class AdaptationOptions(Options):
    """What is trained of a language model."""

    train: Literal["lora", "full", "frozen"] = "lora"
    """``lora``: low-rank updates of all linear layers of the text tower (UTGRec's code). ``full``: every
    weight of the text tower. ``frozen``: the code tokens' rows alone."""

    lora_rank: Positive = 8
    """r of LoRA (UTGRec's code)."""

    lora_alpha: Positive = 32
    """The update is scaled by alpha / r (UTGRec's code)."""

    lora_dropout: Rate = 0.1
    """Dropout before the low-rank update (UTGRec's code)."""

    train_embeddings: Literal["all", "codes"] = "all"
    """Whether all word embeddings are trained (UTGRec's code) or the rows of the code tokens alone, which
    saves the optimizer's two copies of the table. ``train: full`` trains all, ``frozen`` the codes'."""

    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: about a third slower, far less memory. Same gradients."""

    max_tokens: int = Field(default=1024, ge=1)
    """Tokens read of an item's text (UTGRec's code: 1024); the prompt around it comes on top."""


class WordsAndCodes(nn.Module):
    """Input embeddings of V words and, as ids V..V+L-1, of L code tokens that start as the mean word.

    Keeping the code rows apart lets them train while the words are frozen, and leaves the checkpoint's
    vocabulary as it is.

    Args:
        words: ``(V, d)`` the model's own table.
        levels: L.
        dtype: Of the result; trained rows themselves are kept in float32.
    """

    def __init__(self, words: nn.Embedding, levels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.words, self.dtype = words, dtype
        mean = words.weight.detach().float().mean(0)
        self.codes = nn.Parameter(mean.repeat(levels, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """``(..., d)`` for ids ``(...)``."""
        known = self.words.num_embeddings
        words = F.embedding(ids.clamp(max=known - 1), self.words.weight).to(self.dtype)
        codes = F.embedding((ids - known).clamp(min=0), self.codes).to(self.dtype)
        return torch.where((ids >= known).unsqueeze(-1), codes, words)


def adapt(model: Any, options: AdaptationOptions, levels: int, dtype: torch.dtype) -> WordsAndCodes:
    """Freeze `model`, unfreeze what `options` ask for, and give it L code tokens. Changes `model` in place.

    Trained weights are float32 whatever `dtype` is: a bf16 weight would swallow small updates.

    Args:
        model: A text tower, or a vision-language model that holds one as ``language_model``.
        dtype: Of the frozen weights and of the arithmetic between them.

    Returns:
        The embedding module now inside the model.

    Raises:
        CatalexError: When LoRA is wanted and the package peft is missing.
    """
    tower = getattr(model, "language_model", model)
    model.requires_grad_(False)
    if options.train == "lora":
        _inject_lora(model, options)
    elif options.train == "full":
        tower.requires_grad_(True)
    every_word = options.train == "full" or (options.train == "lora" and options.train_embeddings == "all")
    tower.embed_tokens.requires_grad_(every_word)
    tower.embed_tokens = WordsAndCodes(tower.embed_tokens, levels, dtype)
    if options.gradient_checkpointing:
        checkpoint_gradients(model)
    train_in_float32(model)
    return tower.embed_tokens  # type: ignore[no-any-return]


def train_in_float32(model: nn.Module) -> None:
    """Make every trained weight float32."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def checkpoint_gradients(model: Any) -> None:
    """Recompute the layers of `model` in the backward pass (effective in training mode only)."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name since transformers 5.2x
    if enable is None:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        enable({"use_reentrant": False})


def _inject_lora(model: nn.Module, options: AdaptationOptions) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise user_error(
            "LoRA needs the package 'peft', which is not installed",
            remedy=f"run: pip install 'catalex[{EXTRA}]', or set train: full",
        ) from None
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_TEXT_LINEARS,
    )
    config._register_custom_module({nn.Linear: _lora_linear()})
    inject_adapter_in_model(config, model)


@functools.cache
def _lora_linear() -> Any:
    """peft's LoRA layer with its arithmetic in the precision of what comes in.

    peft itself takes the input to float32, as the trained weights are, and back: on a processor with native
    bf16 that is a third of the whole training step. Defined in a function because peft is optional.
    """
    from peft.tuners import lora

    class LoraLinear(lora.Linear):  # type: ignore[misc, unused-ignore]
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            adapter = "default"
            a: Tensor = self.lora_A[adapter].weight  # (r, in)
            b: Tensor = self.lora_B[adapter].weight  # (out, r)
            down, up = a.to(x.dtype), (b * self.scaling[adapter]).to(x.dtype)
            low = F.linear(self.lora_dropout[adapter](x), down)
            result: Tensor = self.base_layer(x, *args, **kwargs) + F.linear(low, up)
            return result

    return LoraLinear


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of `module` that are trained, by name."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


@torch.no_grad()
def restore_trained(module: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """Copy what `trained_weights` gave into `module`.

    Raises:
        CatalexError: When a tensor is missing, unknown or of another shape; nothing is changed then.
    """
    own = trained_weights(module)
    for problem, names in (
        ("lacks", own.keys() - weights.keys()),
        ("has unknown", weights.keys() - own.keys()),
    ):
        if names:
            raise user_error(
                f"the stored encoder {problem} weights, for example {min(names)!r}",
                place=place,
                value=len(names),
                remedy="load it with the options it was trained with",
            )
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise user_error(
                f"weight {name!r} of the stored encoder has another shape",
                place=place,
                value=tuple(weights[name].shape),
                allowed=str(tuple(value.shape)),
                remedy="load it with the options it was trained with",
            )
    for name, value in own.items():
        value.copy_(weights[name])
