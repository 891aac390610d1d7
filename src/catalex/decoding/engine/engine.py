"""`Engine`: a model and a catalogue, resident on a device and ready to answer.

On CUDA every batch is one replay of a captured graph (`recording`), over Triton kernels in bf16 where
they can run (`fused`) and over torch otherwise (`plain`, always in fp32). On a CPU it is `beam_search`.
The answers are those of `beam_search`: fp32 within 1e-4 of its scores, bf16 within the rounding of
products.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalex.decoding.beam import Decoded, Precision, beam_search, check_sizes, nothing_found
from catalex.decoding.engine.index import StaticIndex, power_of_two
from catalex.decoding.engine.masks import Masks, open_tokens
from catalex.decoding.engine.plain import Plain
from catalex.decoding.engine.program import Operations, search
from catalex.decoding.engine.recording import SLOTS, Bucket, Pending, Recording
from catalex.decoding.engine.requests import Restrictions, check
from catalex.decoding.engine.weights import Weights
from catalex.decoding.trie import DeviceTrie, Trie
from catalex.errors import user_error
from catalex.models.t5 import PAD, T5

Kind: TypeAlias = Literal["beam", "plain", "fused"]
"""What searches: `beam_search`, the captured program in torch, or the captured program in Triton."""

Asked: TypeAlias = tuple[Tensor, Restrictions]
"""Tokens ``(U, T)`` and what may come out for them, both checked."""

TOKENS = 16
"""Histories are padded to a multiple of it."""
EXCLUDED = 16
"""Lists of excluded items are padded to a power of two, at least this."""
LARGEST = 1024
"""Users of a batch, at most; more are split."""


class Engine:
    """Constrained beam search of one model over one catalogue.

    Safe to use from several threads (calls wait for each other). Items that come or go in `trie` are seen by
    the next call; weights that changed in `model` only after `refresh`.

    Args:
        model: Its device is the engine's.
        beam, k: Prefixes kept at each level; items wanted.
        precision: Of the products.
        kind: None chooses by device, precision and what is installed.

    Raises:
        CatalexError: When `beam` and `k` do not fit each other, or the identifiers use tokens that the model
            lacks.
    """

    def __init__(
        self,
        model: T5,
        trie: Trie,
        *,
        beam: int = 50,
        k: int = 10,
        precision: Precision = "fp32",
        kind: Kind | None = None,
    ) -> None:
        check_sizes(beam, k)
        self.model, self.trie, self.beam, self.k, self.precision = model, trie, beam, k, precision
        self.device = model.embedding.weight.device
        self.kind: Kind = kind or _choose(model, precision)
        self._lock = threading.RLock()
        self._filters: Tensor | None = None  # (1 + C, N) on the CPU; the first allows everything
        self._filter_levels: tuple[Tensor, ...] = ()
        self._recordings: dict[Bucket, Recording] = {}
        self._pool: Any = None
        self._seen: DeviceTrie | None = None
        if self.kind != "beam":
            dtype = torch.float32 if precision == "fp32" else torch.bfloat16
            self._weights = Weights(model, trie.length, dtype)
            self._operations = _operations(self.kind, self._weights)
            self._index = StaticIndex(trie.to("cpu"), self.device)
        self._follow()

    # --- changes --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take over the model's present weights. No graph is captured again."""
        with self._lock:
            if self.kind != "beam":
                self._weights.refresh(self.model)

    def set_filters(self, masks: NDArray[np.bool_] | None) -> None:
        """Keep item masks ``(C, N)`` (a category, what is in stock) that requests choose by their row.

        Items that are added to the catalogue later are in none of them.

        Raises:
            CatalexError: When the masks are not boolean rows over the items of the catalogue.
        """
        with self._lock:
            if masks is not None and (masks.dtype != np.bool_ or masks.shape[1:] != (self.trie.size,)):
                raise user_error(
                    "the filters have the wrong type or shape",
                    place="filters",
                    value=f"{masks.dtype} {masks.shape}",
                    allowed=f"bool (filters, {self.trie.size})",
                )
            self._filters = None
            if masks is not None:
                self._filters = torch.from_numpy(np.concatenate([np.ones_like(masks[:1]), masks]))
            self._put_filters()

    def _put_filters(self) -> None:
        """Node masks of the filters over the present index; graphs that read the old ones go."""
        self._recordings = {bucket: r for bucket, r in self._recordings.items() if not bucket.filters}
        self._filter_levels = ()
        if self._filters is not None and self.kind != "beam":
            self._filter_levels = tuple(open_tokens(self._index, self._filters.to(self.device)))

    def _follow(self) -> None:
        """See what became of the trie."""
        state = self.trie.to("cpu")
        if state is self._seen:
            return
        if state.highest_token >= self.model.vocabulary:
            raise user_error(
                "the identifiers use tokens that the model does not have",
                place="identifiers",
                value=state.highest_token,
                allowed=f"below {self.model.vocabulary}",
                remedy="use the tokenizer that the model was trained with",
            )
        if self.kind != "beam":
            if self._index.fits(state):
                self._index.load(state)
            else:
                self._index = StaticIndex(state, self.device)
                self._recordings.clear()
        self._seen = state
        if self._filters is not None:
            added = state.size - self._filters.shape[1]
            self._filters = torch.nn.functional.pad(self._filters, (0, added))
            self._filters[0] = True
            self._put_filters()

    # --- searching ------------------------------------------------------------------------------------------

    def search(
        self,
        tokens: Tensor,
        *,
        allowed: Tensor | None = None,
        excluded: Tensor | None = None,
        filters: Tensor | None = None,
    ) -> Decoded:
        """The best items of each history.

        Args:
            tokens: ``(U, T)`` int64, right-padded with `PAD`; best on the CPU, as requests arrive.
            allowed: ``(N,)`` or ``(U, N)`` bool, items that may come out. Their nodes are computed in the
            call. excluded: ``(U, E)`` int64 items that may not, -1 for none. Costs next to nothing.
            filters: ``(U,)`` int, each user's row of `set_filters`, -1 for none. Costs next to nothing.

        Returns:
            Tensors on the CPU.

        Raises:
            CatalexError: When a shape is wrong, or `allowed` and `filters` are given together.
            FloatingPointError: When the model's scores are not numbers.
        """
        restrictions = Restrictions(allowed, excluded, filters)
        with self._lock:
            self._follow()
            kept = None if self._filters is None else len(self._filters) - 1
            check(tokens, restrictions, self.model.vocabulary, self.trie.size, kept)
            return next(self._each([(tokens, restrictions)]))

    def search_each(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Decoded]:
        """`search` for several batches of tokens and excluded items, in their order.

        While the device works on one batch the next is made and handed over. The engine is this caller's
        until the last answer is taken.

        Args:
            batches: Of each ``(U, T)`` tokens and ``(U, E)`` excluded items or None, as for `search`.

        Raises:
            CatalexError: As `search`.
            FloatingPointError: As `search`.
        """
        with self._lock:
            self._follow()
            yield from self._each(self._checked(batches))

    def _checked(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Asked]:
        for tokens, excluded in batches:
            restrictions = Restrictions(excluded=excluded)
            check(tokens, restrictions, self.model.vocabulary, self.trie.size, None)
            yield tokens, restrictions

    def _each(self, batches: Iterable[Asked]) -> Iterator[Decoded]:
        """Answers of batches in their order, two of them on the device at most."""
        waiting: deque[Pending] = deque()
        for tokens, restrictions in batches:
            fits = 0 < len(tokens) <= LARGEST and not self._falls_back
            while len(waiting) > (SLOTS - 1 if fits else 0):
                yield _numbers(waiting.popleft().result())
            if fits:
                waiting.append(self._start(tokens, restrictions))
            else:
                yield self._alone(tokens, restrictions)
        while waiting:
            yield _numbers(waiting.popleft().result())

    def _alone(self, tokens: Tensor, restrictions: Restrictions) -> Decoded:
        """The answer of a batch that no recording takes: of none, of too many, or by the fallback."""
        if self._falls_back or len(tokens) == 0:
            return self._fall_back(tokens, restrictions)
        pieces = [slice(begin, begin + LARGEST) for begin in range(0, len(tokens), LARGEST)]
        parts = list(self._each((tokens[users], restrictions.of(users)) for users in pieces))
        return Decoded(torch.cat([p.items for p in parts]), torch.cat([p.scores for p in parts]))

    def search_all(
        self,
        histories: Sequence[NDArray[Any] | Sequence[int]],
        *,
        batch_size: int = 512,
        progress: Callable[[int], None] | None = None,
    ) -> Decoded:
        """`search` for any number of histories without padding, in batches of similar length.

        While the device works on one batch the next is made and the last is put away.

        Raises:
            CatalexError: When a history is empty, or holds a token that the model lacks.
            FloatingPointError: When the model's scores are not numbers.
        """
        lengths = np.fromiter((len(history) for history in histories), np.int64, len(histories))
        if len(lengths) and lengths.min() == 0:
            raise user_error(
                "the history is empty",
                place=f"history {lengths.argmin()}",
                remedy="give at least the end token",
            )
        order = np.argsort(lengths, kind="stable")
        found = nothing_found(len(lengths), self.k, torch.device("cpu"))
        size = min(batch_size, LARGEST)
        chosen = [order[begin : begin + size] for begin in range(0, len(order), size)]

        def batches() -> Iterator[tuple[Tensor, None]]:
            for rows in chosen:
                padded = np.full((len(rows), lengths[rows].max()), PAD, np.int64)
                for line, row in zip(padded, rows, strict=True):
                    line[: lengths[row]] = histories[row]
                yield torch.from_numpy(padded), None

        for rows, best in zip(chosen, self.search_each(batches()), strict=True):
            where = torch.from_numpy(rows)
            found.items[where], found.scores[where] = best.items, best.scores
            if progress is not None:
                progress(len(rows))
        return found

    def warm_up(self, users: Sequence[int], tokens: Sequence[int]) -> None:
        """Capture the graphs of these batch sizes and lengths now, so that no request waits for it."""
        for count in users:
            for length in tokens:
                self.search(torch.ones(count, length, dtype=torch.long))

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def _falls_back(self) -> bool:
        return self.kind == "beam" or len(self.trie) == 0

    def _fall_back(self, tokens: Tensor, restrictions: Restrictions) -> Decoded:
        """`beam_search` with every restriction in one item mask."""
        mask = restrictions.mask(len(tokens), self.trie.size, self._filters)
        best = beam_search(
            self.model,
            tokens.to(self.device),
            self.trie,
            beam=self.beam,
            k=self.k,
            allowed=None if mask is None else mask.to(self.device),
            precision=self.precision,
        )
        return _numbers(Decoded(best.items.cpu(), best.scores.cpu()))

    def _start(self, tokens: Tensor, restrictions: Restrictions) -> Pending:
        """Hand a batch to the recording of its bucket."""
        users, length = tokens.shape
        allowed, excluded, filters = restrictions.allowed, restrictions.excluded, restrictions.filters
        if excluded is not None and excluded.shape[1] == 0:
            excluded = None
        bucket = Bucket(
            power_of_two(users),
            -(-length // TOKENS) * TOKENS,
            0 if excluded is None else max(power_of_two(excluded.shape[1]), EXCLUDED),
            0 if allowed is None else (1 if allowed.dim() == 1 else power_of_two(users)),
            filters is not None,
        )
        if bucket not in self._recordings:
            self._recordings[bucket] = self._record(bucket)
        recording = self._recordings[bucket]
        if allowed is not None:
            rows = allowed.to(self.device).view(-1, allowed.shape[-1])
            for old, new in zip(recording.mask_levels, open_tokens(self._index, rows), strict=True):
                old[: len(new)] = new
        return recording.start(tokens, excluded, None if filters is None else filters + 1)

    def _record(self, bucket: Bucket) -> Recording:
        if self._pool is None and self.device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        index, run, weights = self._index, self._operations, self._weights
        levels = self._filter_levels
        if not bucket.filters:
            everything = torch.ones(bucket.masks, index.size, dtype=torch.bool, device=self.device)
            levels = tuple(open_tokens(index, everything)) if bucket.masks else ()

        def program(recording: Recording) -> Tensor:
            return search(
                run,
                index,
                weights.options.layers,
                recording.tokens,
                index.widths(self.beam),
                self.k,
                Masks(levels, recording.chosen) if levels else None,
                recording.excluded if bucket.excluded else None,
            )

        return Recording(bucket, self.device, self.k, program, self._pool, levels)


def _choose(model: T5, precision: Precision) -> Kind:
    if model.embedding.weight.device.type != "cuda":
        return "beam"
    if precision == "fp32" or torch.cuda.get_device_capability(model.embedding.weight.device) < (9, 0):
        return "plain"  # the kernels' tiles are for the shared memory of such devices
    try:
        from catalex.decoding.engine.fused import fits
    except ImportError:
        return "plain"
    return "fused" if fits(model.options) else "plain"


def _operations(kind: Kind, weights: Weights) -> Operations:
    if kind == "plain":
        return Plain(weights)
    from catalex.decoding.engine.fused import Fused

    return Fused(weights)


def _numbers(found: Decoded) -> Decoded:
    if np.isnan(found.scores.numpy()).any():
        raise FloatingPointError("the model's scores are not numbers")
    return found
