"""UTGRec: a content encoder and tree-structured codebooks, trained end to end (arXiv 2504.04405).

An identifier is ``(c_1, .., c_L)``: a root code, then codes of one leaf codebook that all further levels
share, tokens included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch

from catalex.errors import lookup, user_error
from catalex.features.base import ItemContent
from catalex.features.latents import ImageTarget, LatentIndex, image_target_options, make_image_target
from catalex.features.lazy import Lazy
from catalex.features.trainable import (
    TRAINABLE_ENCODERS,
    make_trainable_encoder,
    trainable_encoder_options,
)
from catalex.features.trainable.base import ContentIndex
from catalex.options import Options
from catalex.progress import Track, say
from catalex.quantize import in_blocks
from catalex.tokenizers.base import CodeSpace, ContentTokenizer, TokenizerDomain
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.positives import Positives
from catalex.tokenizers.training_set import check_domains, check_vectors, untrained
from catalex.tokenizers.utgrec_network import LatentShape, UTGRecNetwork
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.tokenizers.utgrec_training import Material, project_rows, train_utgrec
from catalex.types import JSON, Codes, Floats

METHODS: dict[str, str] = {
    "projection": "fine-tune with the code vectors C frozen, and W and all else trained (UTGRec)",
    "full": "fine-tune with everything trained, C included (ablation 5)",
}
"""Ways of fine-tuning to a domain."""


class UTGRec(ContentTokenizer):
    """Codes of L hidden vectors of an encoder that was trained for them."""

    Options: ClassVar[type[Options]] = UTGRecOptions
    name: ClassVar[str] = "utgrec"

    def __init__(self, options: UTGRecOptions) -> None:
        self.options = options
        trainable_encoder_options(options.encoder, "tokenizer.encoder")
        if options.image_target is not None:
            image_target_options(options.image_target, "tokenizer.image_target")
        self.training: Training | None = None
        self.vectors_width: int | None = None
        self.seed = 0
        self.network: UTGRecNetwork | None = None

    @property
    def space(self) -> CodeSpace:
        """K_r root codes, and K_f leaf codes that the levels behind share."""
        o = self.options
        levels = range(o.levels)
        groups = tuple(min(level, 1) if o.share_leaf else level for level in levels)
        return CodeSpace(tuple(o.leaf_size if level else o.root for level in levels), groups)

    @property
    def reads_images(self) -> bool:
        """Whether the encoder reads images, or the visual decoder reconstructs them."""
        chosen = trainable_encoder_options(self.options.encoder, "tokenizer.encoder")
        images = getattr(chosen, "images", None)  # encoders that always look have no such option
        always = TRAINABLE_ENCODERS[self.options.encoder["name"]]().reads_images
        return self._draws or (always if images is None else images != "none")

    @property
    def _draws(self) -> bool:
        return self.options.image_target is not None and self.options.image_weight > 0

    # --- training -------------------------------------------------------------------------------------------

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Pre-train everything, eq. 13; see `utgrec_training.train_utgrec` for the curves."""
        width = check_domains(domains, max(self.space.sizes), "tokenizer.root and tokenizer.leaf")
        target = self._image_target(device)
        self.network = self._build(seed, width, target)
        self.vectors_width, self.seed = width, seed
        self.training = Training.of(domains, self._row)
        return self._train(domains, seed, device, partial, target, fine_tune=False)

    def fine_tune(
        self,
        domain: TokenizerDomain,
        method: str,
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> tuple[Self, Mapping[str, JSON]]:
        """A copy of this tokenizer trained on to one domain; `method` is one of `METHODS`.

        Raises:
            CatalexError: For an unknown method, or vectors of another width than those of pre-training.
        """
        network = self._trained()
        lookup(METHODS, method, "way of fine-tuning")
        assert self.vectors_width is not None
        check_vectors(domain.vectors, self.vectors_width, f"domain {domain.name!r}")
        own = type(self)(self.options)
        own.network = deepcopy(network)
        own.vectors_width, own.seed = self.vectors_width, self.seed
        own.training = Training.of([domain], self._row)
        own.network.codebooks.freeze_bases(method == "projection")
        curves = own._train([domain], seed, device, partial, self._image_target(device), fine_tune=True)
        own.network.codebooks.freeze_bases(False)
        return own, curves

    def _train(
        self,
        domains: Sequence[TokenizerDomain],
        seed: int,
        device: str,
        partial: Path | None,
        target: ImageTarget | None,
        *,
        fine_tune: bool,
    ) -> Mapping[str, JSON]:
        network = self._trained().to(device)
        for domain in domains:
            if domain.content is None:
                raise user_error(
                    "this tokenizer learns from texts and images, and none were given",
                    place=f"domain {domain.name!r}",
                    remedy="run it by 'catalex tokenize', which reads them",
                )
        content = _Joined([domain.content for domain in domains if domain.content is not None])
        vectors = np.concatenate([np.asarray(domain.vectors, np.float32) for domain in domains])
        names = ", ".join(domain.name for domain in domains)
        with Track(f"read {names}", len(content), "items") as track:
            index = network.encoder.index(content, vectors, track.advance)
        latents: LatentIndex | None = None
        if network.image is not None and target is not None:
            with Track(f"images of {names}", len(content), "items") as track:
                cache = None if partial is None else partial / "latents"  # a resumed run reads them there
                latents = target.index(_Images(content), track.advance, cache=cache)
        unreadable = _told(index, latents, len(content), names)
        if latents is not None and not latents.present.any():
            latents = None  # nothing to draw in these domains
        positives = Positives.of([d.training for d in domains], [len(d.vectors) for d in domains])
        material = Material(index, positives, torch.from_numpy(vectors), latents)
        start = self.options.fine_tune_start if fine_tune else None
        if start in (None, "turned"):
            network.begin_at_principal_components(material.vectors[torch.from_numpy(positives.trained)])
        if start in ("turned", "settled") and network.shortcut is not None:
            network.begin_correction()  # what was learned for other domains' codes tears these apart

        def follow() -> None:
            projected = material.project(network, positives.trained, device).to(device)
            if start in ("turned", "followed"):
                network.codebooks.turn_onto(projected, seed)
            network.codebooks.settle(projected, seed)

        curves = train_utgrec(
            network,
            material,
            seed=seed,
            device=device,
            partial=partial,
            name=f"{'fine-tune ' if fine_tune else ''}UTGRec on {names}",
            fine_tune=fine_tune,
            follow=follow if start not in (None, "kept") else None,
        )
        network.cpu().eval()
        return {
            **curves,
            "with_text": int(index.has_text.sum()),
            "with_image": int(index.has_image.sum() if latents is None else latents.present.sum()),
            "unreadable_images": unreadable,
        }

    def _build(
        self, seed: int, vectors_width: int | None, latents: ImageTarget | LatentShape | None
    ) -> UTGRecNetwork:
        """An untrained network; the seed acts on nothing outside."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = make_trainable_encoder(
                self.options.encoder,
                "tokenizer.encoder",
                levels=self.options.levels,
                seed=seed,
                vectors_width=vectors_width,
            )
            return UTGRecNetwork(
                encoder, self.options, seed=seed, latents=latents, vectors_width=vectors_width
            )

    def _image_target(self, device: str) -> ImageTarget | None:
        if not self._draws or self.options.image_target is None:
            return None
        return make_image_target(self.options.image_target, "tokenizer.image_target", device)

    # --- codes ----------------------------------------------------------------------------------------------

    @property
    def _row(self) -> int:
        return self.options.levels * self.options.code_width

    def represent(self, content: Sequence[ItemContent], vectors: Floats, *, name: str, device: str) -> Floats:
        """H' of each item, ``(N, L d_c)``, in full precision."""
        network = self._trained().to(device)
        assert self.vectors_width is not None
        check_vectors(vectors, self.vectors_width, f"domain {name!r}")
        vectors = np.array(vectors, dtype=np.float32)
        with Track(f"read {name}", len(content), "items") as track:
            index = network.encoder.index(content, vectors, track.advance)
        _told(index, None, len(content), name)
        with Track(f"encode {name}", len(content), "items") as track:
            found = project_rows(
                network, index, torch.from_numpy(vectors), np.arange(len(content)), device, track
            )
        network.cpu()
        rows: Floats = found.reshape(len(found), self._row).numpy()
        return rows

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of rows ``(N, L d_c)`` that `represent` gave."""
        network = self._trained()

        def codes(block: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = network.codebooks.encode(self._levels(block))
            return found

        with torch.no_grad():
            return in_blocks(codes, self._rows(vectors)).numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances to the codes of the next level."""
        network = self._trained()
        before = torch.from_numpy(np.array(prefix, dtype=np.int64))

        def measure(block: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            return network.codebooks.distances(self._levels(block), chosen)

        with torch.no_grad():
            found: Floats = in_blocks(measure, self._rows(vectors), before).numpy()
        return found

    def decode(self, codes: Codes) -> Floats:
        """``(N, L d_c)``: h^ of every level, eq. before 3.6."""
        network = self._trained()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))

        def restored(block: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = network.codebooks.restore(block).flatten(1)
            return found

        with torch.no_grad():
            found: Floats = in_blocks(restored, chosen).numpy()
        return found

    def _levels(self, rows: torch.Tensor) -> torch.Tensor:
        """``(N, L d_c)`` to ``(N, L, d_c)``."""
        return rows.view(len(rows), self.options.levels, self.options.code_width)

    def _rows(self, vectors: Floats) -> torch.Tensor:
        check_vectors(vectors, self._row, self.name)
        return torch.from_numpy(np.array(vectors, dtype=np.float32))

    def _trained(self) -> UTGRecNetwork:
        if self.network is None:
            raise untrained(self.name)
        return self.network

    # --- folder ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; frozen weights of packages are not stored
        again."""
        network = self._trained()
        assert self.training is not None
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in network.trained().items()}
        arrays["vectors_width"] = np.array([self.vectors_width or 0], np.int64)
        arrays["seed"] = np.array([self.seed], np.int64)  # an encoder's frozen weights may be random ones
        image = network.image
        arrays["latent_shape"] = np.array([image.tokens, image.channels] if image else [0, 0], np.int64)
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; the encoder's frozen weights come from where they came from in training.

        The image autoencoder is not asked for: only training needs it.
        """
        options, training, arrays = read_tokenizer(folder, cls.name)
        own = cls(UTGRecOptions.parse(options, str(folder)))
        own.training = training
        own.vectors_width = int(arrays.pop("vectors_width")[0]) or None
        own.seed = int(arrays.pop("seed")[0])
        tokens, channels = arrays.pop("latent_shape").tolist()
        own.network = own._build(
            own.seed, own.vectors_width, LatentShape(tokens, channels) if tokens else None
        )
        weights = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        own.network.restore(weights)
        own.network.eval()
        return own


class _Joined(Lazy[ItemContent]):
    """The items of several domains, one domain after the other."""

    def __init__(self, parts: Sequence[Sequence[ItemContent]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def fetch(self, place: int) -> ItemContent:
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]


class _Images(Lazy[bytes | None]):
    """The images of items."""

    def __init__(self, content: Sequence[ItemContent]) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def fetch(self, place: int) -> bytes | None:
        return self._content[place].image


def _told(index: ContentIndex, latents: LatentIndex | None, items: int, names: str) -> int:
    """Say what the items lack; returns the number of images that could not be read."""
    bad = max(index.unreadable, latents.unreadable if latents is not None else 0)
    empty = items - int((index.has_text | index.has_image).sum())
    if empty:
        say(f"{names}: {empty:,} of {items:,} items have neither text nor image")
    if bad:
        say(f"{names}: {bad:,} images could not be read and count as missing")
    return bad
