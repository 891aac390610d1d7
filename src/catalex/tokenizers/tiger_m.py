"""TIGER_M: TIGER on text and image vectors (a column of table 2 of UTGRec, arXiv 2504.04405).

That paper calls it a naive integration of multimodal features into TIGER and says no more; there is no code.
The definition is therefore ours (`modalities`), with the two other readings as options: the mean of text and
image vectors of one space (CLIP), and a quantizer for each modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from catalex.errors import user_error
from catalex.options import Options
from catalex.quantize import in_blocks
from catalex.tokenizers.base import CodeSpace, Tokenizer, TokenizerDomain
from catalex.tokenizers.folder import WEIGHTS_FILE, Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.modalities import Modalities, check_text_width, unit
from catalex.tokenizers.rqvae import RQVAE, RQVAEOptions
from catalex.tokenizers.training_set import check_domains, check_vectors, untrained
from catalex.types import JSON, Codes, Floats


class TigerMOptions(Options):
    """Settings of TIGER_M."""

    text_width: int = Field(384, ge=1)
    """D_t, columns of the content vectors that are text; the rest is image. MiniLM: 384."""
    fusion: Literal["concatenate", "average", "separate"] = "concatenate"
    """"concatenate": one quantizer on both blocks; "average": on the mean of the two unit vectors, which need
    one width and mean something in one space only (CLIP); "separate": a quantizer for each modality."""
    components: int = Field(128, ge=1)
    """Principal components kept of each modality."""
    missing_flag: bool = True
    """A column that says whether the image is missing, with half of the image block's variance."""
    image_levels: int = Field(1, ge=1, le=7)
    """Levels of the image quantizer of "separate"; the text has the others (2 + 1)."""
    quantizer: RQVAEOptions = Field(default_factory=lambda: RQVAEOptions.model_validate({}))
    """The RQ-VAE, as for TIGER."""


class TigerM(Tokenizer):
    """One or two RQ-VAEs behind a map that puts text and image on one scale."""

    Options: ClassVar[type[Options]] = TigerMOptions
    name: ClassVar[str] = "tiger_m"

    def __init__(self, options: TigerMOptions) -> None:
        self.options = options
        levels = options.quantizer.levels
        if options.fusion == "separate" and options.image_levels >= levels:
            raise user_error(
                "no level is left for the text",
                place="tokenizer.image_levels",
                value=options.image_levels,
                allowed=f"below {levels}, the levels of the quantizer",
            )
        self.quantizers = [
            RQVAE(options.quantizer.model_copy(update={"levels": part})) for part in self._level_parts
        ]
        self.modalities: Modalities | None = None
        self.training: Training | None = None

    @property
    def space(self) -> CodeSpace:
        """L levels of K codes, each with its own codebook."""
        return CodeSpace.of(self.options.quantizer.levels, self.options.quantizer.codebook_size)

    @property
    def _level_parts(self) -> list[int]:
        levels = self.options.quantizer.levels
        if self.options.fusion != "separate":
            return [levels]
        return [levels - self.options.image_levels, self.options.image_levels]

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Learn the map, then train the quantizers.

        Returns:
            Curves of the RQ-VAE; with "separate" those of the text, and under ``image`` those of the image;
            ``missing_images``: share of the items without one.
        """
        width = check_domains(domains, self.options.quantizer.codebook_size)
        check_text_width(width, self.options.text_width)
        if self.options.fusion == "average" and width != 2 * self.options.text_width:
            raise user_error(
                "text and image vectors of different widths have no mean",
                place="tokenizer.fusion",
                value=[self.options.text_width, width - self.options.text_width],
                remedy="use encoders of one space, or fusion: concatenate",
            )
        vectors = torch.cat([torch.from_numpy(np.array(d.vectors, dtype=np.float32)) for d in domains])
        self.modalities = Modalities.fit(
            vectors, self.options.text_width, self.options.components, self.options.missing_flag
        )
        self.training = Training.of(domains, width)
        found = []
        for number, quantizer in enumerate(self.quantizers):
            seen = [replace(d, vectors=self._parts(d.vectors)[number]) for d in domains]
            folder = None if partial is None else partial / ("image" if number else "text")
            found.append(dict(quantizer.fit(seen, seed=seed + number, device=device, partial=folder)))
        missing = float((~vectors[:, self.options.text_width :].any(1)).double().mean())
        facts = {**found[0], "missing_images": missing}
        return {**facts, "image": found[1]} if len(found) > 1 else facts

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of vectors ``(N, D_t + D_v)``."""
        parts = self._parts(vectors)
        return np.concatenate(
            [quantizer.encode(part) for quantizer, part in zip(self.quantizers, parts, strict=True)], axis=1
        )

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances in the latent space of the level's quantizer, given the prefix."""
        parts, step = self._parts(vectors), prefix.shape[1]
        first = self._level_parts[0]
        if step < first:
            return self.quantizers[0].distances(parts[0], prefix)
        return self.quantizers[1].distances(parts[1], prefix[:, first:])

    def decode(self, codes: Codes) -> Floats:
        """``(N, D_t + D_v)``: unit text vectors beside unit image vectors, nearly."""
        modalities, first = self._trained(), self._level_parts[0]
        parts = [self.quantizers[0].decode(codes[:, :first])]
        if len(self.quantizers) > 1:
            parts.append(self.quantizers[1].decode(codes[:, first:]))
        rows = torch.from_numpy(np.concatenate(parts, axis=1))
        if self.options.fusion == "average":
            lengths = modalities.text.length, modalities.image.length
            found: Floats = torch.cat([rows * length for length in lengths], dim=1).numpy()
        else:
            found = in_blocks(modalities.invert, rows).numpy()
        return found

    def _parts(self, vectors: Floats) -> list[Floats]:
        """What each quantizer reads of vectors ``(N, D_t + D_v)``."""
        modalities = self._trained()
        assert self.training is not None
        check_vectors(vectors, self.training.width, "vectors to tokenize")
        rows = torch.from_numpy(np.array(vectors, dtype=np.float32))
        if self.options.fusion == "average":
            return [in_blocks(self._mean, rows).numpy()]
        x = in_blocks(modalities, rows)
        if self.options.fusion == "concatenate":
            return [x.numpy()]
        return [part.contiguous().numpy() for part in x.split(modalities.parts, dim=1)]

    def _mean(self, rows: Tensor) -> Tensor:
        """Mean of the unit vectors that are there, ``(N, D_t)``."""
        blocks = [rows[:, : self.options.text_width], rows[:, self.options.text_width :]]
        there = sum(block.any(1, keepdim=True).float() for block in blocks)
        total = unit(blocks[0]) + unit(blocks[1])
        return total / torch.as_tensor(there).clamp(min=1)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        arrays = self._trained().arrays()
        assert self.training is not None
        for number, quantizer in enumerate(self.quantizers):
            arrays |= {f"quantizer_{number}.{name}": array for name, array in quantizer.arrays().items()}
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        own = cls(TigerMOptions.parse(options, str(folder)))
        own.training, own.modalities = training, Modalities.from_arrays(arrays)
        for number, quantizer in enumerate(own.quantizers):
            prefix = f"quantizer_{number}."
            inner: dict[str, np.ndarray[Any, Any]] = {
                name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
            }
            width = Training(len(inner["normaliser.mean"]), training.domains)
            quantizer.restore(width, inner, folder / WEIGHTS_FILE)
        return own

    def _trained(self) -> Modalities:
        if self.modalities is None:
            raise untrained(self.name)
        return self.modalities
