"""What tokenizers with an autoencoder share: the MLPs, their files, and the way into the latent space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from catalex.quantize import in_blocks
from catalex.tokenizers.base import LatentTokenizer
from catalex.tokenizers.folder import WEIGHTS_FILE, Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.normalise import Normaliser
from catalex.tokenizers.training_set import checked_rows, untrained
from catalex.types import Floats


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from width to width with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """An encoder MLP ``width -> hidden -> latent`` and its mirror image."""

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = mlp([width, *hidden, latent])
        self.decoder = mlp([latent, *reversed(hidden), width])


N = TypeVar("N", bound=Autoencoder)


class AutoencoderTokenizer(LatentTokenizer, Generic[N]):
    """A normaliser and a network with an encoder; says how they are used untrained, saved and loaded."""

    name: ClassVar[str]

    def __init__(self, options: Any) -> None:
        self.options = options
        self.network: N | None = None
        self.normaliser: Normaliser | None = None
        self.training: Training | None = None

    @abstractmethod
    def _build(self, width: int, seed: int) -> N:
        """An untrained network for normalised vectors of `width`; the seed acts on nothing outside."""

    def latents(self, vectors: Floats) -> Tensor:
        """``(N, d)`` output of the encoder."""
        rows, network, normaliser = self._rows(vectors), *self._trained()
        with torch.no_grad():
            return in_blocks(lambda block: network.encoder(normaliser(block)), rows)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and the weights."""
        arrays = self.arrays()
        assert self.training is not None
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All that was learned, by name: network, normaliser, and what a method adds."""
        network, normaliser = self._trained()
        arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
        return arrays | normaliser.arrays() | self._more_arrays()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        tokenizer = cls(cls.Options.parse(options, str(folder)))
        tokenizer.restore(training, arrays, folder / WEIGHTS_FILE)
        return tokenizer

    def restore(self, training: Training, arrays: Mapping[str, np.ndarray[Any, Any]], place: Path) -> None:
        """Take back what `arrays` gave, from the file at `place`."""
        self.training = training
        self.expect([domain for domain, _ in training.domains])
        self.normaliser = Normaliser.from_arrays(arrays)
        network = self._build(self.normaliser.width, seed=0)
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in network.state_dict()})
        self.network = network.eval()
        self._take_more(arrays, place)

    def _more_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a method saves beside the weights and the normaliser."""
        return {}

    def _take_more(self, arrays: Mapping[str, np.ndarray[Any, Any]], place: Path) -> None:
        """Take `_more_arrays` back from the arrays of the file at `place`."""

    def _trained(self) -> tuple[N, Normaliser]:
        if self.network is None or self.normaliser is None:
            raise untrained(self.name)
        return self.network, self.normaliser

    def _rows(self, vectors: Floats) -> Tensor:
        """Checked vectors ``(N, D)`` as a tensor."""
        self._trained()
        assert self.training is not None
        return checked_rows(vectors, self.training.width)
