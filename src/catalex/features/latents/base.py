"""`ImageTarget`: item images as the latents that a visual decoder has to reconstruct.

UTGRec does not reconstruct pixels but the latent map of a frozen variational autoencoder (VAE), one token a
cell (arXiv 2504.04405, section 2.3; the latents follow MAR, arXiv 2406.11838). Which autoencoder is its own
affair (`Vae`); what is done with images is the same for all and stands here: square, encode, remember.

Letters: N items, M of them with a readable image, S side of the image in pixels, N_v latent tokens, C their
channels, B batch; `parts` and `ways` are tensors an orientation and orientations an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from catalex.artifacts import hash_json
from catalex.data.images.decoding import decode_image
from catalex.errors import CatalexError, require, user_error
from catalex.features.base import ItemContent
from catalex.features.cache import VectorCache, content_key
from catalex.features.latents.index import LatentIndex
from catalex.options import Options, Positive

SIDE = 16
"""Cells along a side of the latent map by default: 16 x 16 = 256 tokens, as in the paper."""

BICUBIC = 3
"""Pillow's number of the filter that MAR and the diffusion models before it resize with."""

BLOCK = 256
"""Images that are read, encoded and cached together; a killed run loses at most one block."""

_REVISION = 1


class LatentOptions(Options):
    """How images become latents, whatever the autoencoder."""

    size: Positive | None = None
    """S, side of the square image in pixels, a multiple of the autoencoder's factor. By default 16 times the
    factor: 256 tokens as in the paper (arXiv 2504.04405), 128 px for a factor of 8 and 256 px for 16."""

    flip: bool = True
    """Whether training also meets the mirrored image (official code of UTGRec). Doubles time and memory of
    the latents, which are computed once for both orientations."""


class Vae(ABC):
    """A frozen image autoencoder, used as it was published.

    Attributes:
        channels: C.
        factor: Pixels along a side of one latent cell.
        parts: 1 when an image has one latent map; 2 when it has a posterior, mean and log-variance.
        decodes: Whether it has a decoder.
    """

    channels: int
    factor: int
    parts: int = 1
    decodes: bool = True

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names the weights."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents ``(B, parts, C, h, w)`` of pixels ``(B, 3, S, S)`` in [0, 1].

        They are scaled as a diffusion model wants them, to a spread of about one.
        """

    @abstractmethod
    def decode(self, maps: Tensor) -> Tensor:
        """Pixels ``(B, 3, S, S)``, about in [0, 1], of scaled latents ``(B, C, h, w)``."""


class ImageTarget:
    """Latent tokens of images under one autoencoder, and the way back to pixels.

    Attributes:
        size: S.
        tokens: N_v, latent cells of an image in row-major order.
        channels: C.
        fingerprint: Names weights and settings; part of cache keys and of what a tokenizer was trained with.
        image_bytes: Memory that one image takes in a `LatentIndex`.
    """

    def __init__(self, vae: Vae, options: LatentOptions, device: str = "cpu") -> None:
        """Check the size against the autoencoder.

        Raises:
            CatalexError: When Pillow is missing or the size is no multiple of the autoencoder's factor.
        """
        require("PIL", "images")  # asked now: later it would look like an unreadable image
        self._vae, self._device = vae, torch.device(device)
        self.size = options.size or SIDE * vae.factor
        if self.size % vae.factor:
            raise user_error(
                "the size of images does not fit the autoencoder",
                value=self.size,
                allowed=f"a multiple of {vae.factor}",
                remedy=f"set size: {max(1, round(self.size / vae.factor)) * vae.factor}",
            )
        self._side = self.size // vae.factor
        self.tokens, self.channels = self._side**2, vae.channels
        self._ways = 2 if options.flip else 1
        # A fixed number of images a pass, filled up if need be: an image's latents do not depend on its
        # companions. A CPU gains nothing from more than one.
        self._rows = 1 if self._device.type == "cpu" else 16

    @property
    def decodes(self) -> bool:
        """Whether `decode` works."""
        return self._vae.decodes

    @property
    def fingerprint(self) -> str:
        settings = [_REVISION, self._vae.fingerprint, self.size, self._ways]
        return f"{self._vae.fingerprint}-{self.size}px-{hash_json(settings)[:16]}"

    @property
    def image_bytes(self) -> int:
        return 2 * self._vae.parts * self._ways * self.tokens * self.channels

    def index(
        self,
        images: Sequence[bytes | None],
        advance: Callable[[int], None] | None = None,
        *,
        cache: Path | None = None,
    ) -> LatentIndex:
        """Encode the images of N items once. A bad image is counted and counts as absent; it never stops.

        Args:
            images: The file of each item's image, None for none; asked for in order, once each.
            advance: Called with the number of items finished since the last call.
            cache: Folder of caches. Latents are written block by block below a folder of this target's
                fingerprint, so that a second run, or one that goes on after a break, encodes nothing twice.
        """
        width = self.image_bytes // 2
        store = None if cache is None else VectorCache(cache / self.fingerprint, width, np.float16)
        present, unreadable = np.zeros(len(images), np.bool_), 0
        blocks = [torch.zeros(0, width, dtype=torch.float16)]
        for start in range(0, len(images), BLOCK):
            files = {row: images[row] for row in range(start, min(start + BLOCK, len(images)))}
            latents, readable, bad = self._block([file for file in files.values() if file is not None], store)
            blocks.append(latents)
            present[[row for row, file in files.items() if file is not None]] = readable
            unreadable += bad
            if advance is not None:
                advance(len(files))
        stacked = torch.cat(blocks).view(-1, self._vae.parts, self._ways, self.tokens, self.channels)
        return LatentIndex(present, unreadable, *stacked.unbind(1))

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels ``(B, 3, S, S)`` in [0, 1], float32, of latents ``(B, N_v, C)``, on the latents' device.

        Raises:
            CatalexError: When the autoencoder came without its decoder.
        """
        if not self.decodes:
            raise user_error(
                "this autoencoder has no decoder, so latents cannot be shown as images",
                value=self._vae.fingerprint,
                remedy="use weights that include the decoder",
            )
        maps = (
            latents.detach().to(self._device, torch.float32).mT.reshape(-1, self.channels, *[self._side] * 2)
        )
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            pixels = [self._vae.decode(part).float().clamp(0, 1) for part in maps.split(16)]
        joined = torch.cat(pixels) if pixels else maps.new_zeros(0, 3, self.size, self.size)
        return joined.to(latents.device)

    def pixels(self, data: bytes) -> Tensor:
        """An image file as ``(3, S, S)`` in [0, 1]: shorter side resized to S, centre cropped.

        Raises:
            CatalexError: With the reason, when the bytes are no image within the limits of `decode_image`.
        """
        from PIL import ImageOps

        # Cropped before it is resized: the same picture, but a strip of 1 x 100,000 pixels is never blown up.
        square = ImageOps.fit(decode_image(data), (self.size, self.size), method=BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255

    def _block(self, files: list[bytes], store: VectorCache | None) -> tuple[Tensor, list[bool], int]:
        """Latents ``(m, width)`` float16 of the m readable files, which those are, and how many are not."""
        latents: list[Tensor | None] = [None] * len(files)
        keys = [content_key(ItemContent("", file)) for file in files]
        if store is not None:
            vectors, found = store.get(keys)
            for row in map(int, np.flatnonzero(found)):
                latents[row] = torch.from_numpy(vectors[row]).half()
        fresh: list[tuple[int, Tensor]] = []
        for row in [row for row, known in enumerate(latents) if known is None]:
            try:
                fresh.append((row, self.pixels(files[row])))
            except CatalexError:
                continue
        for start in range(0, len(fresh), self._rows):
            part = fresh[start : start + self._rows]
            for (row, _), latent in zip(part, self._encode([pixels for _, pixels in part]), strict=True):
                latents[row] = latent
        if store is not None and fresh:
            made = {keys[row]: latents[row] for row, _ in fresh}
            store.put(list(made), torch.stack([one for one in made.values() if one is not None]).numpy())
        readable = [one is not None for one in latents]
        kept = [one for one in latents if one is not None]
        empty = torch.zeros(0, self.image_bytes // 2, dtype=torch.float16)
        return torch.stack(kept) if kept else empty, readable, len(files) - len(kept)

    def _encode(self, images: list[Tensor]) -> Tensor:
        """Latents ``(m, width)`` float16 of at most `_rows` images ``(3, S, S)``, both orientations."""
        pixels = torch.zeros(self._rows, 3, self.size, self.size)
        pixels[: len(images)] = torch.stack(images)
        pixels = pixels.to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            ways = [self._vae.encode(pixels if way == 0 else pixels.flip(-1)) for way in range(self._ways)]
        maps = torch.stack(ways, 2).float()[: len(images)]  # (m, parts, ways, C, h, w)
        largest = torch.finfo(torch.float16).max
        return maps.flatten(4).mT.flatten(1).clamp(-largest, largest).half().cpu()
