"""I_k: what the latent vectors of a domain still tell about its content vectors, and how evenly over
domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch

from catalex.quantize.dependence import FEWEST, SIZE, domain_information
from catalex.quantize.usage import balance
from catalex.tokenizers.base import LatentTokenizer
from catalex.types import JSON, Floats


def common_size(items: Sequence[int]) -> int:
    """n at which domains of these numbers of items can all be compared: at most `SIZE`, and no more than the
    smallest domain that is large enough to be measured at all has."""
    return min([SIZE, *(count for count in items if count >= FEWEST)])


def information(tokenizer: LatentTokenizer, vectors: Floats, size: int, seed: int) -> dict[str, JSON]:
    """Dependence between content vectors ``(N, D)`` and their latents.

    Returns:
        ``hsic`` and ``cka`` (see `catalex.quantize.dependence`), null for fewer than `FEWEST` items;
        ``items``: n of a draw.
    """
    # Only the items of the draws matter, but which they are is the business of `domain_information`.
    x = torch.from_numpy(np.array(vectors, dtype=np.float32))
    z = tokenizer.latents(vectors)
    return {
        "hsic": domain_information(x, z, seed=seed, size=size),
        "cka": domain_information(x, z, seed=seed, size=size, normalised=True),
        "items": min(size, len(x)),
    }


def spread(found: Mapping[str, Mapping[str, JSON]]) -> dict[str, JSON]:
    """Mean, variance (divisor K) and balance over the K domains of ``hsic`` and of ``cka``, as far as they
    were measured; each null when no domain was."""
    facts: dict[str, JSON] = {}
    for name in ("hsic", "cka"):
        values = [row[name] for row in found.values() if row[name] is not None]
        facts[name] = (
            {"mean": float(np.mean(values)), "variance": float(np.var(values)), **asdict(balance(values))}
            if values
            else None
        )
    return facts
