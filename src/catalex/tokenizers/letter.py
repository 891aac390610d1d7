"""LETTER: an RQ-VAE whose codes also agree with who buys what, and are used diversely (arXiv 2405.07314).

The collaborative vectors are those of a sequential recommender over the same items, learned from training
interactions alone. They come in as `TokenizerDomain.collaborative`; who makes them is not this file's affair
(`catalex.pipelines.collaborative` trains our SASRec, or reads one that is there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from catalex.errors import user_error
from catalex.options import Options, with_preset
from catalex.quantize.vq import Reduction
from catalex.tokenizers.base import CollaborativeNeed, CollaborativeOptions, TokenizerDomain
from catalex.tokenizers.letter_network import LetterLosses, LetterNetwork, clusters_of
from catalex.tokenizers.rqvae import RQVAE, Objective, RQVAEOptions
from catalex.tokenizers.rqvae_network import RQVAENetwork

PRESETS: dict[str, dict[str, Any]] = {
    "letter": {"levels": 4, "revive_until": 0.0},
    "letter-code": {
        "levels": 4,
        "hidden": (2048, 1024, 512, 256, 128, 64),
        "weight_decay": 1e-4,
        "alpha": 0.01,
        "normalise": "none",
        "revive_until": 0.0,
    },
}
"""Published settings that differ from the defaults."""


class LetterOptions(RQVAEOptions):
    """Settings of LETTER; what an RQ-VAE has too is explained there."""

    preset: Literal["letter", "letter-code"] = "letter"  # type: ignore[assignment]
    """"letter": the paper's weights. "letter-code": sizes and weights of the released code."""
    levels: int = Field(4, ge=1, le=8)
    """L, codes an item. LETTER: 4."""
    alpha: float = Field(0.02, ge=0)
    """Weight of the collaborative loss. Paper: best about .02 of {.1, .02, .01, .001}; run script .01. With 0
    no collaborative vectors are needed."""
    diversity: float = Field(1e-4, ge=0)
    """beta, weight of the diversity loss. Paper: 1e-4 of {1e-2 .. 1e-5}; run script 1e-4."""
    clusters: int = Field(10, ge=1)
    """Clusters of the codes of a level, for the diversity loss. LETTER: 10."""
    sinkhorn: float | None = Field(0.003, ge=0.0029)
    """Temperature of the balanced assignment of the last level in training (released code); null assigns
    the nearest code there as everywhere."""
    sinkhorn_iterations: int = Field(50, ge=1)
    """Its iterations (released code)."""
    constrained_init: bool = True
    """Place the codebooks by k-means with bounded cluster sizes (released code) instead of plain k-means."""
    revive_until: float = Field(0.0, ge=0, le=1)
    """LETTER restarts no codes; the diversity loss is to keep them in use."""
    reduction: Reduction = "mean"
    """Element-wise means as in the released code, which alpha and beta were chosen for; next to the sum over
    all entries of a content vector they would weigh nothing."""
    collaborative: CollaborativeOptions = CollaborativeOptions()
    """Where the collaborative vectors come from."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        return with_preset(values, PRESETS)


class Letter(RQVAE):
    """Codes of an RQ-VAE that was trained with LETTER's two further losses."""

    Options: ClassVar[type[Options]] = LetterOptions
    name: ClassVar[str] = "letter"
    title: ClassVar[str] = "LETTER"
    losses: ClassVar[tuple[str, ...]] = LetterLosses._fields

    def __init__(self, options: LetterOptions) -> None:
        super().__init__(options)
        self.options: LetterOptions = options

    @property
    def collaborative(self) -> CollaborativeNeed | None:
        """Vectors as wide as the latent; None where their weight is 0."""
        if not self.options.alpha:
            return None
        return CollaborativeNeed(self.options.latent, self.options.collaborative)

    def _objective(
        self, network: RQVAENetwork, inputs: Tensor, domains: Sequence[TokenizerDomain], seed: int
    ) -> Objective:
        o = self.options
        assert isinstance(network, LetterNetwork)
        aligned = None if not o.alpha else self._aligned(domains).to(inputs.device)
        sizes = [len(domain.vectors) for domain in domains]
        owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(inputs.device)
        clusters = clusters_of(network, o.clusters, seed) if o.diversity else []
        generator = torch.Generator().manual_seed(seed)

        def losses(rows: Tensor) -> tuple[Tensor, ...]:
            draws = torch.rand(o.levels, len(rows), generator=generator).to(inputs.device)
            h = None if aligned is None else aligned[rows]
            return tuple(network.losses(inputs[rows], h, owners[rows], clusters, draws))

        return losses

    def _aligned(self, domains: Sequence[TokenizerDomain]) -> Tensor:
        """Collaborative vectors ``(N, latent)`` of all domains, centred and of unit variance in each: raw
        inner products would be as large as the recommender happened to make them.

        Raises:
            CatalexError: When a domain has none, or they have another shape or are not finite.
        """
        parts = []
        for domain in domains:
            found, wanted = domain.collaborative, (len(domain.vectors), self.options.latent)
            if found is None:
                raise user_error(
                    "LETTER needs collaborative vectors, and none were given",
                    place=f"domain {domain.name!r}",
                    remedy="run it by 'catalex tokenize', which trains a SASRec for them, or set alpha: 0",
                )
            if found.shape != wanted or not np.isfinite(found).all():
                raise user_error(
                    "the collaborative vectors do not fit the catalogue and the latent vector",
                    place=f"domain {domain.name!r}",
                    value=tuple(found.shape),
                    allowed=f"finite numbers {wanted}",
                    remedy="train the recommender that they come from with hidden equal to 'latent'",
                )
            rows = torch.from_numpy(np.array(found, dtype=np.float32)).double()
            rows = rows - rows.mean(0)
            parts.append((rows / rows.square().mean().sqrt().clamp(min=1e-12)).float())
        return torch.cat(parts)

    def _build(self, width: int, seed: int) -> LetterNetwork:
        """An untrained network; the seed acts on nothing outside."""
        o = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LetterNetwork(
                width,
                o.hidden,
                o.latent,
                o.levels,
                o.codebook_size,
                beta=o.beta,
                decay=o.decay,
                reduction=o.reduction,
                alpha=o.alpha,
                beta_diversity=o.diversity,
                epsilon=o.sinkhorn,
                iterations=o.sinkhorn_iterations,
                constrained=o.constrained_init,
            )
