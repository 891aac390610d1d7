"""Adaptation of a frozen tokenizer to a domain that it has not seen, from the domain's vectors alone.

A tokenizer that learned from other domains spends its codes where their items are; a new domain falls on few
of them and loses its neighbourhoods. Neither method needs labels or interactions, both take seconds, and the
tokenizer that is adapted stays as it is, bit for bit.

"rotate" is the closed-form cousin of UTGRec's transfer (2504.04405), which keeps the codebooks and learns the
projection before them. "grow" is for tokenizers with experts (UniTok, 2511.12922).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from catalex.errors import lookup, user_error
from catalex.options import Options
from catalex.quantize import in_blocks, kmeans, nearest, reconstruct, residual_distances, residual_encoder
from catalex.quantize.balanced import balanced_codebook
from catalex.quantize.procrustes import Motion, refine, rotate_onto
from catalex.tokenizers.base import CodeSpace, LatentTokenizer, ResidualPart, Tokenizer, TokenizerDomain
from catalex.tokenizers.experts import Routed
from catalex.tokenizers.folder import WEIGHTS_FILE, Training, read_tokenizer, weights_hash, write_tokenizer
from catalex.tokenizers.training_set import check_domains, check_vectors
from catalex.types import JSON, Codes, Floats

METHODS: dict[str, str] = {
    "rotate": "move the domain onto the shared codebooks, then refine them by a few Lloyd iterations",
    "grow": "give the domain an expert of its own beside those that there are",
}
"""Every method of adaptation in one sentence."""

BASE = "base"
"""Folder of the frozen tokenizer inside that of an adapted one."""


class AdaptOptions(Options):
    """Settings of adaptation."""

    rounds: int = Field(20, ge=0)
    """rotate: largest number of rounds of assignment and rotation; ours, the error settles in about ten. 0
    only moves the domain's mean onto the codebooks'."""
    balance: float = Field(1.0, ge=0, le=1)
    """rotate: how evenly the first codes are shared out while the rotation is sought and before the first
    Lloyd iteration; ours. 0 lets every item take its nearest code, and the domain crowds on few codes."""
    stay: float = Field(1e-6, ge=0)
    """rotate: pull of the rotation towards the identity, as a share of the domain's variance; ours. So
    little only decides what few items leave open; 1e-3 and more cost neighbours."""
    sample: int = Field(4096, ge=1)
    """rotate: random items that the rotation is fitted on; ours, more change little. Lloyd takes all."""
    lloyd: int = Field(10, ge=0)
    """rotate: Lloyd iterations a level from the shared code vectors; ours. 0 leaves the codebooks alone."""
    iterations: int = Field(50, ge=0)
    """grow: largest number of k-means iterations a level, as in `rqkmeans`."""


class Adaptation(Options):
    """What an adapted tokenizer's ``config.json`` says of it."""

    method: Literal["rotate", "grow"]
    """One of `METHODS`."""
    seed: int
    """Seed of the adaptation."""
    settings: AdaptOptions
    """Its settings."""
    sizes: tuple[int, ...]
    """Codes at each position of the identifier."""
    fixed: tuple[int | None, ...]
    """See `ResidualPart.fixed`."""


class AdaptedTokenizer(LatentTokenizer):
    """A frozen tokenizer whose latent vectors are moved and quantized with codebooks of one domain's own."""

    Options: ClassVar[type[Options]] = Adaptation
    name: ClassVar[str] = "adapted"

    def __init__(
        self,
        base: LatentTokenizer,
        options: Adaptation,
        training: Training,
        codebooks: Sequence[Tensor],
        motion: Motion | None,
    ) -> None:
        self.base = base
        self.options = options
        self.training = training
        self.codebooks = [codebook.float().contiguous() for codebook in codebooks]
        self.motion = motion

    @property
    def space(self) -> CodeSpace:
        """That of the frozen tokenizer; "grow" adds codes at the expert's position, if it has one."""
        return CodeSpace(self.options.sizes, self.base.space.groups)

    @property
    def order(self) -> tuple[int, ...]:
        """That of the frozen tokenizer."""
        return self.base.order

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Refused: there is nothing left to train."""
        raise user_error(
            "an adapted tokenizer is already trained",
            place=self.name,
            remedy="adapt the frozen tokenizer to the other domain instead",
        )

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of vectors ``(N, D)``; the same code for all at fixed positions."""
        chosen = in_blocks(residual_encoder(self.codebooks), self.latents(vectors))
        codes = np.empty((len(chosen), self.space.levels), np.int32)
        codes[:, self._free] = chosen.numpy()
        for position, code in enumerate(self.options.fixed):
            if code is not None:
                codes[:, position] = code
        return codes

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances at position ``order[l]``, given the prefix ``(N, l)``.

        At a fixed position 0 for the fixed code and 1 for all others, so that conflict handling changes it
        only when all identifiers with the fixed code are taken.
        """
        step = prefix.shape[1]
        position = self.order[step]
        code = self.options.fixed[position]
        if code is not None:
            check_vectors(vectors, self.training.width, "vectors to tokenize")
            constant = np.ones((len(vectors), self.options.sizes[position]), np.float32)
            constant[:, code] = 0
            return constant
        residual = [s for s in range(step) if self.options.fixed[self.order[s]] is None]
        before = torch.from_numpy(np.array(prefix, dtype=np.int64)[:, residual])
        found = in_blocks(
            lambda block, codes: residual_distances(block, codes, self.codebooks),
            self.latents(vectors),
            before,
        )
        distances: Floats = found.numpy()
        return distances

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` vectors of codes ``(N, L)``; what stands at fixed positions is ignored."""
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64)[:, self._free])
        found = self.from_latents(in_blocks(lambda block: reconstruct(block, self.codebooks), chosen))
        vectors: Floats = found.numpy()
        return vectors

    def latents(self, vectors: Floats) -> Tensor:
        """``(N, d)`` latent vectors of the frozen tokenizer, moved onto the codebooks."""
        check_vectors(vectors, self.training.width, "vectors to tokenize")
        found = self.base.latents(vectors)
        return found if self.motion is None else in_blocks(self.motion, found)

    def from_latents(self, latents: Tensor) -> Tensor:
        """``(N, D)`` vectors of latent vectors ``(N, d)``, moved back first."""
        back = latents if self.motion is None else in_blocks(self.motion.invert, latents)
        return self.base.from_latents(back)

    def part_for(self, latents: Tensor) -> ResidualPart:
        """The domain's own codebooks, whatever the latent vectors."""
        return ResidualPart(tuple(self.codebooks), self.options.fixed)

    @property
    def _free(self) -> list[int]:
        """Positions of the residual codes, in the order in which they are chosen."""
        return [position for position in self.order if self.options.fixed[position] is None]

    def save(self, folder: Path) -> None:
        """Write ``config.json``, the domain's part, and the frozen tokenizer below ``base/``."""
        self.base.save(folder / BASE)
        arrays = {f"codebook_{level}": codebook.numpy() for level, codebook in enumerate(self.codebooks)}
        if self.motion is not None:
            arrays |= {name: getattr(self.motion, name).numpy() for name in ("mean", "rotation", "target")}
        # identifiers are named by these weights alone, so these name the frozen ones
        arrays["base"] = np.frombuffer(bytes.fromhex(weights_hash(folder / BASE)), np.uint8)
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        from catalex.tokenizers import load_tokenizer

        options, training, arrays = read_tokenizer(folder, cls.name)
        found = Adaptation.parse(options, str(folder))
        base = load_tokenizer(folder / BASE)
        names = [f"codebook_{level}" for level in range(found.fixed.count(None))]
        missing = [name for name in (*names, "base") if name not in arrays]
        if missing:
            raise user_error(
                f"array {missing[0]!r} is missing", place=folder / WEIGHTS_FILE, remedy="adapt again"
            )
        if not isinstance(base, LatentTokenizer) or arrays["base"].tobytes().hex() != weights_hash(
            folder / BASE
        ):
            raise user_error(
                "this is not the tokenizer that was adapted",
                place=folder / BASE,
                remedy="copy the folder again as a whole",
            )
        motion = None
        if "rotation" in arrays:
            motion = Motion(*(torch.from_numpy(arrays[name]) for name in ("mean", "rotation", "target")))
        return cls(base, found, training, [torch.from_numpy(arrays[name]) for name in names], motion)


def adapt(
    tokenizer: LatentTokenizer,
    domain: TokenizerDomain,
    method: str = "rotate",
    *,
    seed: int,
    options: AdaptOptions | None = None,
    expert: int | None = None,
) -> AdaptedTokenizer:
    """`tokenizer`, which stays as it is, made ready for `domain`.

    Args:
        tokenizer: Trained on other domains.
        domain: Only its vectors are used.
        method: One of `METHODS`. "rotate" takes any number of items: codes that get none keep their code
            vectors. "grow" needs as many items as a codebook has codes.
        seed: Fixes the result.
        options: Settings; the defaults if None.
        expert: grow: number of the new expert; None takes the first free one. Domains that are grown one
            after the other from one frozen tokenizer, and go into one recommender, need different numbers.
            Where identifiers name no expert there are no numbers, and the space stays as it is.

    Raises:
        CatalexError: Unknown method; no items, vectors with NaN or of another width; "grow" without experts,
            with too few items, with the number of an expert that exists, or with a number where none is
            written.
    """
    lookup(METHODS, method, "method of adaptation")
    options = options if options is not None else AdaptOptions.parse({}, "adapt")
    width = check_domains([domain], 1)
    latents = tokenizer.latents(domain.vectors)
    part = tokenizer.part_for(latents)
    sizes, fixed, motion = list(tokenizer.space.sizes), list(part.fixed), None
    if method == "rotate":
        motion, codebooks = _rotate(latents, part.codebooks, options, seed)
    else:
        position = _expert_position(tokenizer, part, expert)
        if position is not None:
            name = _new_expert(expert, sizes[position])
            fixed[position], sizes[position] = name, name + 1
        codebooks = _grow(latents, part.codebooks, options, seed, domain.name)
    record = Adaptation.model_validate(
        {"method": method, "seed": seed, "settings": options, "sizes": tuple(sizes), "fixed": tuple(fixed)}
    )
    return AdaptedTokenizer(tokenizer, record, Training.of([domain], width), codebooks, motion)


def kept_codes(frozen: Codes, adapted: Codes) -> list[float]:
    """Share of the items that have the same code in both ``(N, L)``, position by position; 1 without items.

    >>> kept_codes(np.array([[1, 2], [3, 4]], np.int32), np.array([[1, 5], [3, 6]], np.int32))
    [1.0, 0.0]
    """
    if not len(frozen):
        return [1.0] * frozen.shape[1]
    return [float(share) for share in (frozen == adapted).mean(0)]


def _rotate(
    latents: Tensor, codebooks: Sequence[Tensor], options: AdaptOptions, seed: int
) -> tuple[Motion, list[Tensor]]:
    """The motion of latent vectors ``(N, d)`` onto the codebooks, and the codebooks refined on them."""
    mean = latents.double().mean(0).float()
    middle = torch.stack([codebook.float().mean(0) for codebook in codebooks]).sum(0)
    start = Motion(mean, torch.eye(len(mean)), middle)
    chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))[: options.sample]
    fitted = rotate_onto(
        latents[chosen.sort().values],
        codebooks,
        start,
        rounds=options.rounds,
        stay=options.stay,
        balance=options.balance,
    )
    return fitted.motion, refine(fitted.motion(latents), codebooks, options.lloyd, fitted.penalty)


def _grow(
    latents: Tensor, codebooks: Sequence[Tensor], options: AdaptOptions, seed: int, name: str
) -> list[Tensor]:
    """Balanced residual k-means of latents ``(N, d)``, as UniTok's experts start, with codebooks as large
    as those there are."""
    needed = max(len(codebook) for codebook in codebooks)
    if len(latents) < needed:
        raise user_error(
            "there are fewer items than codes in a codebook",
            place=f"domain {name!r}",
            value=len(latents),
            allowed=f"at least {needed} items",
            remedy="use method 'rotate', which takes any number of items",
        )
    rest, grown = latents, []
    for level, codebook in enumerate(codebooks):
        start = kmeans(rest, len(codebook), seed=seed + level, iterations=options.iterations)
        grown.append(balanced_codebook(rest, start.centroids))
        rest = rest - grown[-1][nearest(rest, grown[-1])]
    return grown


def _expert_position(tokenizer: Tokenizer, part: ResidualPart, expert: int | None) -> int | None:
    """The one position of the identifier where the expert stands; None for experts that it does not name."""
    positions = [position for position, code in enumerate(part.fixed) if code is not None]
    while isinstance(tokenizer, AdaptedTokenizer):
        tokenizer = tokenizer.base
    if not positions and isinstance(tokenizer, Routed):
        if expert is not None:
            raise user_error(
                "identifiers of this tokenizer name no expert, so a new one has no number",
                place="adapt",
                value=expert,
                remedy="leave the number out",
            )
        return None
    if len(positions) != 1:
        raise user_error(
            "method 'grow' adds an expert, and this tokenizer has "
            + ("none" if not positions else "more than one for an item"),
            place="adapt",
            remedy="use method 'rotate'",
        )
    return positions[0]


def _new_expert(expert: int | None, experts: int) -> int:
    """Number of the new expert beside `experts` old ones."""
    if expert is not None and expert < experts:
        raise user_error(
            "an expert has this number already", place="adapt", value=expert, allowed=f"at least {experts}"
        )
    return experts if expert is None else expert
