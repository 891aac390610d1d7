"""RecGPT's tokenizer: finite scalar quantization of slices of a content vector (arXiv 2506.06270).

One tokenizer for all domains, trained on their pooled vectors; an unseen domain is tokenized as it is. The
codes are points of a fixed grid (`catalex.quantize.fsq`), and all positions share one vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from catalex.errors import user_error
from catalex.options import Options, Rate, with_preset
from catalex.quantize import in_blocks
from catalex.tokenizers.base import CodeSpace, Tokenizer, TokenizerDomain
from catalex.tokenizers.epochs import train_epochs
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.fsq_network import FSQNetwork
from catalex.tokenizers.normalise import Normalisation, Normaliser
from catalex.tokenizers.training_set import check_domains, checked_rows, pooled, untrained
from catalex.training.loop import TrainingOptions
from catalex.types import JSON, Codes, Floats, Ints

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"levels": (8, 5, 5, 5)}}
"""Grids: 15,360 codes as published, 1,000 for catalogues that would leave most of them unused."""


class FSQTraining(TrainingOptions):
    """Optimisation; the published values but for the device's precision."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the items. RecGPT: 100 (weights of epoch 90 released)."""
    batch_size: int = Field(default=256, ge=1)
    """Items a step. RecGPT: 256."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """RecGPT: Adam at 1e-4; without decay AdamW is Adam."""


class FSQOptions(Options):
    """Settings of RecGPT's tokenizer."""

    preset: Literal["paper", "small"] = "paper"
    """See `PRESETS`."""
    tokens: int = Field(default=4, ge=1, le=8)
    """K, codes an item. RecGPT: 4."""
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    """Values of each number of a code; their product is the size of the vocabulary. RecGPT: 15,360."""
    layers: int = Field(default=2, ge=0)
    """Transformer layers of the decoder. RecGPT: 2."""
    heads: int = Field(default=8, ge=1)
    """Attention heads of a layer; divides D / K. RecGPT: 8."""
    dropout: Rate = 0.2
    """Dropout of the decoder. RecGPT: .2."""
    hidden: int = Field(default=768, ge=1)
    """Width inside the MLP at the end. RecGPT: 768."""
    normalise: Normalisation = "centre"
    """Ours: entries of unit vectors are tiny, and all items would begin on one code. RecGPT reads them
    raw ("none")."""
    training: FSQTraining = FSQTraining()
    """Optimisation."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        return with_preset(values, PRESETS)

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if not self.levels or min(self.levels) < 2:
            raise ValueError("each number of a code needs at least two values")
        return self


class RecGPTFSQ(Tokenizer):
    """K codes, each of one slice of the (normalised) content vector."""

    Options: ClassVar[type[Options]] = FSQOptions
    name: ClassVar[str] = "recgpt-fsq"

    def __init__(self, options: FSQOptions) -> None:
        self.options = options
        self.network: FSQNetwork | None = None
        self.normaliser: Normaliser | None = None
        self.training: Training | None = None

    @property
    def space(self) -> CodeSpace:
        """K positions that share one grid, hence one range of tokens."""
        size = int(np.prod(self.options.levels))
        return CodeSpace((size,) * self.options.tokens, (0,) * self.options.tokens)

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train the projections and the decoder; see `train_epochs` for the curves.

        Any number of items will do: no codebook has to be filled.
        """
        width = check_domains(domains, 1)
        vectors, weights = pooled(domains, "proportional")
        self.normaliser = Normaliser.fit(self.options.normalise, vectors, weights)
        self.network = self._build(self.normaliser.width, seed)
        self.training = Training.of(domains, width)
        inputs = self.normaliser(vectors).to(device)

        def make(rows: Ints) -> dict[str, Tensor]:
            return {"vectors": inputs[torch.from_numpy(rows).to(device)]}

        def used() -> list[float]:
            codes = self.encode(vectors.numpy())
            return [len(np.unique(codes[:, k])) / self.space.sizes[k] for k in range(self.options.tokens)]

        return train_epochs(
            self.network,
            len(inputs),
            make,
            lambda network, batch: network(batch["vectors"]),
            options=self.options.training,
            seed=seed,
            device=device,
            partial=partial,
            name=f"recgpt-fsq on {', '.join(domain.name for domain in domains)}",
            judge=used,
        )

    def _build(self, width: int, seed: int) -> FSQNetwork:
        o = self.options
        if -(-width // o.tokens) % o.heads:
            raise user_error(
                "the width of a slice is not divisible by the number of heads",
                place="tokenizer.heads",
                value=o.heads,
                allowed=f"divisors of {-(-width // o.tokens)}",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FSQNetwork(
                width,
                o.tokens,
                o.levels,
                layers=o.layers,
                heads=o.heads,
                dropout=o.dropout,
                hidden=o.hidden,
            )

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, K)`` of vectors ``(N, D)``."""
        network, normaliser = self._trained()

        def codes(block: Tensor) -> Tensor:
            return network.grid.nearest(network.numbers(normaliser(block)).flatten(0, 1)).view(len(block), -1)

        with torch.no_grad():
            return in_blocks(codes, self._rows(vectors)).numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances between the values of slice l = width of `prefix` and all grid points.

        The codes of the other slices play no part.
        """
        network, normaliser = self._trained()
        level = prefix.shape[1]

        def measure(block: Tensor) -> Tensor:
            return network.grid.distances(network.numbers(normaliser(block))[:, level])

        with torch.no_grad():
            found: Floats = in_blocks(measure, self._rows(vectors)).numpy()
        return found

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` output of the decoder, with the normalisation undone."""
        network, normaliser = self._trained()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))
        with torch.no_grad():
            found: Floats = in_blocks(
                lambda block: normaliser.invert(network.restore(network.grid.values(block))), chosen
            ).numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        network, normaliser = self._trained()
        assert self.training is not None
        arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        write_tokenizer(folder, self.name, self.options, self.training, arrays | normaliser.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        own = cls(FSQOptions.parse(options, str(folder)))
        own.training = training
        own.normaliser = Normaliser.from_arrays(arrays)
        own.network = own._build(own.normaliser.width, seed=0)
        own.network.load_state_dict(
            {name: torch.from_numpy(arrays[name]) for name in own.network.state_dict()}
        )
        own.network.eval()
        return own

    def _trained(self) -> tuple[FSQNetwork, Normaliser]:
        if self.network is None or self.normaliser is None:
            raise untrained(self.name)
        return self.network, self.normaliser

    def _rows(self, vectors: Floats) -> Tensor:
        """Checked vectors ``(N, D)`` as a tensor."""
        self._trained()
        assert self.training is not None
        return checked_rows(vectors, self.training.width)
