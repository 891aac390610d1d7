"""LAMIA-style tokenizer: a palette of parallel aspects of an item, each clustered by itself.

After "Learning Multi-Aspect Item Palette" (arXiv 2409.07276 **v3**; versions 1 and 2 of that number are
another paper). Only its abstract and a summary could be read: what is ours stands in `lamia_network`. The
codes of an identifier are independent and of equal rank: no code refines another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from catalex.errors import lookup, user_error
from catalex.features.base import ItemContent
from catalex.features.trainable import make_trainable_encoder, trainable_encoder_options
from catalex.features.trainable.base import ContentIndex, TextTargets
from catalex.options import Options, Rate
from catalex.progress import Track
from catalex.quantize import in_blocks, kmeans, squared_distances
from catalex.quantize.distances import lowest, nearest
from catalex.quantize.kmeans import cluster_means
from catalex.tokenizers.base import CodeSpace, ContentTokenizer, TokenizerDomain
from catalex.tokenizers.epochs import train_epochs
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.lamia_network import KEEP, VECTORS, WORDS, LamiaNetwork
from catalex.tokenizers.training_set import check_domains, check_vectors, untrained
from catalex.training.loop import TrainingOptions
from catalex.types import JSON, Codes, Floats, Ints

ENCODERS = ("mini", "frozen")
"""Trainable encoders whose hidden states can be kept from seeing each other."""
METHODS: dict[str, str] = {
    "projection": "keep the language model, and move the codebooks by Lloyd iterations",
    "full": "train the language model on to the domain, then move the codebooks",
}
"""Ways of fine-tuning to a domain."""
ROWS = 64
"""Items encoded at once without gradient; fixed, so that nothing depends on it."""
TEXT_STEP = 16
"""Targets are padded to a multiple of this many words: few shapes."""


class LamiaTraining(TrainingOptions):
    """Optimisation of the language model (ours after the summary: AdamW 1e-4, 3 to 10 epochs)."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the items."""
    batch_size: int = Field(default=128, ge=2)
    """Items a step; the others of a batch are the negatives of the contrastive loss."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Rate of AdamW."""
    warmup_steps: int = Field(default=20, ge=0)
    """Ours."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Ours."""


class LamiaOptions(Options):
    """Settings of the palette tokenizer; defaults without a source are ours."""

    encoder: dict[str, Any] = Field(default_factory=lambda: {"name": "mini", "start": "plain"})
    """Trainable encoder, one of `ENCODERS`; its code tokens never see each other."""
    levels: int = Field(default=4, ge=1, le=8)
    """L, aspects."""
    codebook_size: int = Field(default=256, ge=2, le=65536)
    """K, codes an aspect (the summary: 256 or 512)."""
    contrast: float = Field(default=1.0, ge=0)
    """a, weight of the contrastive loss."""
    diversity: float = Field(default=0.1, ge=0)
    """b, weight of the diversity loss; without mask and diversity all aspects become one."""
    temperature: float = Field(default=0.05, gt=0)
    """tau of the contrastive loss."""
    drop: Rate = 0.1
    """Share of words left out of each view."""
    decoder_layers: int = Field(default=1, ge=1)
    """Layers of the text decoder; shallow, so that the palette has to carry the content."""
    decoder_heads: int = Field(default=6, ge=1)
    """Its heads; divides the encoder's width (384)."""
    decoder_dropout: Rate = 0.1
    """Its dropout."""
    longest: int = Field(default=64, ge=1)
    """Words of a text that are reconstructed."""
    restarts: int = Field(default=10, ge=1)
    """Runs of k-means an aspect, of which the best is kept."""
    iterations: int = Field(default=100, ge=0)
    """Lloyd iterations of a run at most."""
    training: LamiaTraining = LamiaTraining()
    """Optimisation."""


class Lamia(ContentTokenizer):
    """L codebooks, one for each aspect of the palette. Its rows are the L unit vectors side by side."""

    Options: ClassVar[type[Options]] = LamiaOptions
    name: ClassVar[str] = "lamia"

    def __init__(self, options: LamiaOptions) -> None:
        self.options = options
        trainable_encoder_options(options.encoder, "tokenizer.encoder")
        if options.encoder["name"] not in ENCODERS:
            raise user_error(
                "the code tokens of this encoder see each other, so aspects would not be independent",
                place="tokenizer.encoder.name",
                value=options.encoder["name"],
                allowed=list(ENCODERS),
            )
        self.network: LamiaNetwork | None = None
        self.codebooks: list[Tensor] = []
        self.training: Training | None = None
        self.vectors_width = 0
        self.seed = 0

    @property
    def space(self) -> CodeSpace:
        """L levels of K codes, each with its own codebook."""
        return CodeSpace.of(self.options.levels, self.options.codebook_size)

    @property
    def reads_images(self) -> bool:
        """Whether the encoder reads images."""
        return bool(self.options.encoder.get("images", "none") != "none")

    # --- training -------------------------------------------------------------------------------------------

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train the language model, then cluster each aspect; see `train_epochs` for the curves."""
        self.vectors_width = check_domains(domains, self.options.codebook_size)
        self.seed = seed
        self.network = self._build(seed)
        self.training = Training.of(domains, self._row)
        return self._train(domains, self.options.training.epochs, seed, device, partial, start=None)

    def fine_tune(
        self, domain: TokenizerDomain, method: str, *, seed: int, device: str, partial: Path | None = None
    ) -> tuple[Self, Mapping[str, JSON]]:
        """A copy made ready for one domain; `method` is one of `METHODS`."""
        lookup(METHODS, method, "way of fine-tuning")
        own = type(self)(self.options)
        own.network, own.seed, own.vectors_width = deepcopy(self._trained()), self.seed, self.vectors_width
        check_vectors(domain.vectors, self.vectors_width, f"domain {domain.name!r}")
        own.training = Training.of([domain], self._row)
        epochs = self.options.training.epochs if method == "full" else 0
        return own, own._train([domain], epochs, seed, device, partial, start=self.codebooks)

    def _train(
        self,
        domains: Sequence[TokenizerDomain],
        epochs: int,
        seed: int,
        device: str,
        partial: Path | None,
        start: Sequence[Tensor] | None,
    ) -> Mapping[str, JSON]:
        network, names = self._trained().to(device), ", ".join(domain.name for domain in domains)
        content: list[ItemContent] = []
        for domain in domains:
            if domain.content is None:
                raise user_error(
                    "this tokenizer learns from texts, and none were given",
                    place=f"domain {domain.name!r}",
                    remedy="run it by 'catalex tokenize', which reads them",
                )
            content += list(domain.content)
        vectors = np.concatenate([np.asarray(domain.vectors, np.float32) for domain in domains])
        with Track(f"read {names}", len(content), "items") as track:
            index = network.encoder.index(content, vectors, track.advance)

        def make(rows: Ints) -> dict[str, Tensor]:
            made = dict(index.batch(rows))
            if index.text is not None:
                made[WORDS], made[KEEP] = _targets(index.text, rows, self.options.longest)
            else:
                made[VECTORS] = torch.from_numpy(vectors[rows])
            return {key: value.to(device) for key, value in made.items()}

        def cluster() -> list[float]:
            rows = self._palettes(index, device, names)
            self.codebooks = self._cluster(rows, seed, start, device)
            codes = self.encode(rows.numpy())
            return [len(np.unique(codes[:, level])) / size for level, size in enumerate(self.space.sizes)]

        if not epochs:
            used = cluster()
            network.cpu().eval()
            return {"total": [], "utilisation": [used], "steps": 0}
        return train_epochs(
            network,
            len(content),
            make,
            lambda model, batch: model(batch),
            options=self.options.training.model_copy(update={"epochs": epochs}),
            seed=seed,
            device=device,
            partial=partial,
            name=f"lamia on {names}",
            judge=cluster,
        )

    def _cluster(self, rows: Tensor, seed: int, start: Sequence[Tensor] | None, device: str) -> list[Tensor]:
        """k-means of each aspect of rows ``(N, L d)``: from random starts, or on from other codebooks."""
        o, made = self.options, []
        for level, palette in enumerate(self._aspects(rows).to(device).unbind(1)):
            if start is not None:
                centroids = start[level].to(device)
                for _ in range(o.iterations):
                    moved = cluster_means(palette, nearest(palette, centroids), centroids)
                    if torch.equal(moved, centroids):
                        break
                    centroids = moved
                made.append(centroids.cpu())
                continue
            runs = [
                kmeans(palette, o.codebook_size, seed=seed + 1000 * run + level, iterations=o.iterations)
                for run in range(o.restarts)
            ]
            made.append(min(runs, key=lambda run: run.inertia[-1]).centroids.cpu())
        return made

    def _build(self, seed: int) -> LamiaNetwork:
        """An untrained network; the seed acts on nothing outside."""
        o = self.options
        settings = {**o.encoder, "independent": True} if o.encoder["name"] == "mini" else o.encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = make_trainable_encoder(
                settings, "tokenizer.encoder", levels=o.levels, seed=seed, vectors_width=self.vectors_width
            )
            if encoder.vocabulary is not None and encoder.width % o.decoder_heads:
                raise user_error(
                    "the encoder's width is not divisible by the number of heads",
                    place="tokenizer.decoder_heads",
                    value=o.decoder_heads,
                    allowed=f"divisors of {encoder.width}",
                )
            return LamiaNetwork(
                encoder,
                self.vectors_width,
                longest=-(-o.longest // TEXT_STEP) * TEXT_STEP,
                layers=o.decoder_layers,
                heads=o.decoder_heads,
                dropout=o.decoder_dropout,
                contrast=o.contrast,
                diversity=o.diversity,
                temperature=o.temperature,
                drop=o.drop,
            )

    # --- codes ----------------------------------------------------------------------------------------------

    @property
    def _row(self) -> int:
        return self.options.levels * self._trained().encoder.width

    def represent(self, content: Sequence[ItemContent], vectors: Floats, *, name: str, device: str) -> Floats:
        """Palettes ``(N, L d)``, the L unit vectors of an item side by side."""
        network = self._trained().to(device)
        check_vectors(vectors, self.vectors_width, f"domain {name!r}")
        with Track(f"read {name}", len(content), "items") as track:
            index = network.encoder.index(content, np.array(vectors, dtype=np.float32), track.advance)
        found: Floats = self._palettes(index, device, name).numpy()
        network.cpu()
        return found

    @torch.no_grad()
    def _palettes(self, index: ContentIndex, device: str, name: str) -> Tensor:
        """Unit palettes ``(N, L d)`` on the CPU, in full precision."""
        network = self._trained().to(device).eval()
        parts = [torch.zeros(0, self._row)]
        with Track(f"read palettes of {name}", len(index), "items") as track:
            for begin in range(0, len(index), ROWS):
                rows = np.arange(begin, min(begin + ROWS, len(index)))
                batch = {key: value.to(device) for key, value in index.batch(rows).items()}
                parts.append(F.normalize(network.palettes(batch), dim=-1).flatten(1).cpu())
                track.advance(len(rows))
        return torch.cat(parts)

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of rows ``(N, L d)`` that `represent` gave."""

        def codes(block: Tensor) -> Tensor:
            aspects = self._aspects(block).unbind(1)
            tables = [
                squared_distances(a.contiguous(), book)
                for a, book in zip(aspects, self.codebooks, strict=True)
            ]
            return torch.stack([lowest(table) for table in tables], 1)

        return in_blocks(codes, self._rows(vectors)).numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances of aspect l = width of `prefix` to its codes; other aspects play no
        part."""
        level = prefix.shape[1]

        def measure(block: Tensor) -> Tensor:
            return squared_distances(self._aspects(block)[:, level].contiguous(), self.codebooks[level])

        found: Floats = in_blocks(measure, self._rows(vectors)).numpy()
        return found

    def decode(self, codes: Codes) -> Floats:
        """``(N, L d)``: the centroids side by side."""
        self._trained()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))
        parts = [book[chosen[:, level]] for level, book in enumerate(self.codebooks)]
        found: Floats = torch.cat(parts, 1).numpy()
        return found

    def _aspects(self, rows: Tensor) -> Tensor:
        """``(N, L d)`` to ``(N, L, d)``."""
        return rows.view(len(rows), self.options.levels, -1)

    def _rows(self, vectors: Floats) -> Tensor:
        check_vectors(vectors, self._row, self.name)
        return torch.from_numpy(np.array(vectors, dtype=np.float32))

    def _trained(self) -> LamiaNetwork:
        if self.network is None:
            raise untrained(self.name)
        return self.network

    # --- folder ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, without frozen weights that come from packages."""
        network = self._trained()
        assert self.training is not None
        arrays = {f"encoder.{name}": t.detach().cpu().numpy() for name, t in network.encoder.saved().items()}
        arrays |= {f"codebook_{level}": book.numpy() for level, book in enumerate(self.codebooks)}
        decoder = {name: t for name, t in network.state_dict().items() if not name.startswith("encoder.")}
        arrays |= {f"decoder.{name}": t.cpu().numpy() for name, t in decoder.items()}
        arrays["facts"] = np.array([self.vectors_width, self.seed], np.int64)
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; frozen weights come from where they came from in training."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        own = cls(LamiaOptions.parse(options, str(folder)))
        own.training = training
        own.vectors_width, own.seed = (int(value) for value in arrays["facts"])
        own.network = own._build(own.seed)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        own.network.encoder.restore(_below("encoder.", tensors))
        own.network.load_state_dict(_below("decoder.", tensors), strict=False)
        own.network.eval()
        own.codebooks = [tensors[f"codebook_{level}"] for level in range(own.options.levels)]
        return own


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _targets(text: TextTargets, rows: Ints, longest: int) -> tuple[Tensor, Tensor]:
    """The first words of the texts of items `rows` ``(B,)``: words ``(B, T)``, 0 at padding, and which are
    real. T is a multiple of `TEXT_STEP`."""
    lengths = np.minimum(np.diff(text.offsets)[rows], longest)
    width = max(-(-int(lengths.max(initial=0)) // TEXT_STEP), 1) * TEXT_STEP
    keep = np.arange(width) < lengths[:, None]
    words = np.zeros((len(rows), width), np.int64)
    places = text.offsets[rows][:, None] + np.arange(width)
    words[keep] = text.tokens[places[keep]]
    return torch.from_numpy(words), torch.from_numpy(keep)
