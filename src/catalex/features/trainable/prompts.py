"""Chat prompts that end in L code tokens, and their padding into batches, for language-model encoders.

::

    <|im_start|>user
    [<|vision_start|> image tokens <|vision_end|>] item text
    instruction <|im_end|>
    <|im_start|>assistant
    code_0 .. code_{L-1}

The model is causal, so a code token sees the content and the code tokens before it. Batches are padded on the
left: the code tokens are the last L columns of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from catalex.features.base import ItemContent
from catalex.features.text import clean
from catalex.features.trainable.base import Batch, ContentIndex, TextTargets
from catalex.types import Bools, Ints

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"

Wording = Literal["chat", "plain"]

_TOKENIZED_AT_ONCE = 512


class Images(Protocol):
    """The images of N items, as tokens of a prompt and as tensors of a batch."""

    present: Bools
    """``(N,)`` whether the item has a readable image."""
    unreadable: int

    def grid(self, row: int) -> tuple[int, int]:
        """Rows and columns of the image tokens of an item that has an image."""
        ...

    def tensors(self, rows: Ints) -> Batch:
        """What the encoder needs of the images of `rows`."""
        ...


class Prompt:
    """Token ids of everything in a prompt that is not the item's own.

    Args:
        tokenizer: A fast tokenizer of transformers that knows `TURN_START` and `TURN_END` (``chat`` only).
        levels: L.
        wording: ``chat`` as above; ``plain`` is content and code tokens alone, which saves about 25 tokens.
        first_code: Id of the first code token; the others follow.
        image_token: Id that marks the place of an image token.
        marks: Ids around the image tokens; empty when the model knows none.
    """

    def __init__(
        self,
        tokenizer: Any,
        levels: int,
        wording: Wording,
        first_code: int,
        image_token: int,
        marks: tuple[int, ...] = (),
    ) -> None:
        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        answer = f"{TURN_END}\n{TURN_START}assistant\n"
        chat = wording == "chat"
        self.start = ids(f"{TURN_START}user\n") if chat else []
        self.finish = ids(f"\nCompress this product text into {levels} codes, coarse to fine.{answer}")
        self.finish_with_image = ids(
            f"\nCompress this product, picture and text, into {levels} codes, coarse to fine.{answer}"
        )
        if not chat:
            self.finish = self.finish_with_image = []
        self.codes = list(range(first_code, first_code + levels))
        self.image_token = image_token
        self.before_image, self.after_image = list(marks[:1]), list(marks[1:])

    def tokens(self, text: Sequence[int], grid: tuple[int, int] | None) -> tuple[list[int], Ints]:
        """The whole prompt and the positions ``(3, T)`` of its tokens in time, height and width (M-RoPE).

        Text counts on in all three; the image tokens of one picture share a time and count rows and columns
        from there; what follows starts behind the larger of the two (arXiv 2409.12191, section 2.1).

        Args:
            text: The item's own tokens.
            grid: Rows and columns of the image tokens, or None without an image.
        """
        if grid is None:
            whole = [*self.start, *text, *self.finish, *self.codes]
            return whole, np.broadcast_to(np.arange(len(whole)), (3, len(whole)))
        before = [*self.start, *self.before_image]
        after = [*self.after_image, *text, *self.finish_with_image, *self.codes]
        height, width = grid
        row, column = np.divmod(np.arange(height * width), width)
        picture = len(before) + np.stack([np.zeros_like(row), row, column])
        rest = len(before) + max(height, width) + np.arange(len(after))
        positions = np.concatenate(
            [
                np.broadcast_to(np.arange(len(before)), (3, len(before))),
                picture,
                np.broadcast_to(rest, (3, len(after))),
            ],
            axis=1,
        )
        return [*before, *[self.image_token] * (height * width), *after], positions


class PromptIndex(ContentIndex):
    """N items as prompts.

    A batch holds ``ids`` ``(B, T)``, ``mask`` ``(B, T)`` (1 where there is a token), ``positions``
    ``(B, 3, T)``, and what `Images.tensors` adds.
    """

    def __init__(self, prompt: Prompt, text: TextTargets, images: Images | None, pad: int) -> None:
        self.text = text
        self.has_text = np.diff(text.offsets) > 0
        self.has_image = images.present if images is not None else np.zeros(len(self.has_text), np.bool_)
        self.unreadable = images.unreadable if images is not None else 0
        self._prompt, self._tokens, self._images, self._pad = prompt, text.tokens, images, pad
        self._offsets = text.offsets

    def __len__(self) -> int:
        return len(self.has_text)

    def batch(self, rows: Ints) -> Batch:
        prompts = [self._one(int(row)) for row in rows]
        longest = max((len(tokens) for tokens, _ in prompts), default=0)
        ids = np.full((len(rows), longest), self._pad, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        positions = np.zeros((len(rows), 3, longest), np.int64)
        for line, (tokens, places) in enumerate(prompts):
            ids[line, longest - len(tokens) :] = tokens
            mask[line, longest - len(tokens) :] = 1
            positions[line, :, longest - len(tokens) :] = places
        batch: dict[str, Tensor] = {
            "ids": torch.from_numpy(ids),
            "mask": torch.from_numpy(mask),
            "positions": torch.from_numpy(positions),
        }
        if self._images is not None:
            batch.update(self._images.tensors(rows))
        return batch

    def _one(self, row: int) -> tuple[list[int], Ints]:
        text = self._tokens[self._offsets[row] : self._offsets[row + 1]].tolist()
        grid = self._images.grid(row) if self._images is not None and self.has_image[row] else None
        return self._prompt.tokens(text, grid)


def causal_mask(mask: Tensor) -> Tensor:
    """Which tokens ``(B, 1, T, T)`` a token may look at: real ones up to itself; padding sees itself alone.

    transformers would build the same from ``(B, T)``, but first waits for the device to see what is padding.
    """
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return (earlier & mask.bool()[:, None, None, :]) | itself


def text_tokens(
    tokenizer: Any,
    items: Sequence[ItemContent],
    max_tokens: int,
    advance: Callable[[int], None] | None = None,
) -> TextTargets:
    """The first `max_tokens` tokens of each item's text.

    A text that spells a control token (``<|im_end|>``) is read letter by letter: it cannot end its own turn.
    """
    pieces: list[Ints] = [np.zeros(0, np.int64)]
    lengths: list[int] = []
    for start in range(0, len(items), _TOKENIZED_AT_ONCE):
        part = [clean(item.text) for item in items[start : start + _TOKENIZED_AT_ONCE]]
        found = tokenizer(
            part,
            add_special_tokens=False,
            truncation=True,
            max_length=max_tokens,
            split_special_tokens=True,
            return_attention_mask=False,
        )["input_ids"]
        pieces += [np.asarray(one, np.int64) for one in found]
        lengths += [len(one) for one in found]
        if advance is not None:
            advance(len(part))
    return TextTargets(np.concatenate(pieces), np.cumsum([0, *lengths], dtype=np.int64))


def byte_tokenizer() -> Any:
    """A tokenizer that needs no file: one token a byte, and the control tokens of the Qwen family.

    It stands in for a checkpoint's tokenizer when a model is built from a configuration alone.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(
        models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[])
    )
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token=TURN_END, pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens([TURN_START, VISION_START, VISION_END, IMAGE_PAD], special_tokens=True)
    return tokenizer
