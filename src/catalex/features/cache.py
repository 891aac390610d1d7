"""`VectorCache`: content vectors on disk, found by a hash of the content they were made from.

One folder for each encoder fingerprint. It only ever grows by whole shards::

    <fingerprint>/<hash of the shard>.safetensors     keys uint8 (n, 32), vectors float32 or float16 (n, D)

A shard is written under a temporary name and renamed, and is named by the hash of its content. So readers
never see half a shard, several processes may write at once, and damage (a flipped bit as well as a cut file)
is noticed: the shard is left aside with a warning and its items are encoded again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from catalex.artifacts import hash_array, read_arrays, write_arrays
from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.progress import say
from catalex.types import Bools, Floats

KEY_BYTES = 32
_SHARDS_IN_MEMORY = 32


def content_key(item: ItemContent) -> bytes:
    """SHA-256 of what the encoder sees: the text's length, the text, the image."""
    text = item.text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(f"{len(text)}:".encode() + text)
    if item.image is not None:
        digest.update(b"image:" + item.image)
    return digest.digest()


class VectorCache:
    """Vectors of width `width` in `folder`, by content key. Safe to share between threads and processes.

    Args:
        folder: The folder of one encoder fingerprint; made by the first `put`.
        width: D. Shards of another width are ignored.
        dtype: How new shards are stored. float32 returns exactly what the encoder gave; float16 halves the
            space and rounds each component of a unit vector by at most 2.5e-4.
    """

    def __init__(
        self, folder: Path, width: int, dtype: type[np.float32] | type[np.float16] = np.float32
    ) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        self._where: dict[bytes, tuple[str, int]] = {}
        self._seen: set[str] = set()
        self._loaded: dict[str, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of keys known so far (call `refresh` to see the work of other processes)."""
        return len(self._where)

    def refresh(self) -> None:
        """Index the shards that were written since the last look."""
        with self._lock:
            self._refresh()

    def get(self, keys: Sequence[bytes]) -> tuple[Floats, Bools]:
        """Vectors ``(n, D)`` and whether each was found ``(n,)``; rows that were not found are zero."""
        with self._lock:
            if any(key not in self._where for key in keys):
                self._refresh()
            vectors = np.zeros((len(keys), self.width), np.float32)
            found = np.zeros(len(keys), np.bool_)
            for row, key in enumerate(keys):
                while (where := self._where.get(key)) is not None:
                    shard = self._vectors(where[0])
                    if shard is not None:  # else the shard was damaged and its keys are gone: look again
                        vectors[row], found[row] = shard[where[1]], True
                        break
            return vectors, found

    def put(self, keys: Sequence[bytes], vectors: Floats) -> Floats:
        """Store one shard; returns the vectors as `get` will give them (rounded if the dtype is float16)."""
        if not len(keys):
            return vectors
        stored = vectors.astype(self.dtype)
        packed = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)
        name = _shard_name(packed, stored)
        write_arrays(self.folder / name, {"keys": packed, "vectors": stored})
        with self._lock:
            self._seen.add(name)
            self._where.update({key: (name, row) for row, key in enumerate(keys)})
        return stored.astype(np.float32)

    def _refresh(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                with safe_open(path, framework="numpy") as shard:
                    keys = shard.get_tensor("keys")
                    shape = tuple(shard.get_slice("vectors").get_shape())
            except (SafetensorError, OSError, ValueError) as error:
                _warn(path, str(error))
                continue
            if keys.dtype != np.uint8 or keys.shape != (shape[0], KEY_BYTES) or shape[1:] != (self.width,):
                _warn(path, f"shapes {keys.shape} and {shape} do not fit width {self.width}")
                continue
            for row, key in enumerate(keys):
                self._where.setdefault(key.tobytes(), (path.name, row))

    def _vectors(self, name: str) -> NDArray[Any] | None:
        """The vectors of a shard, checked against the hash in its name; None (and forgotten) when damaged."""
        if name not in self._loaded:
            try:
                arrays = read_arrays(self.folder / name)
                intact = _shard_name(arrays["keys"], arrays["vectors"]) == name
                reason = "its content does not match its name"
            except (CatalexError, KeyError, OSError) as error:
                intact, reason = False, str(error)
            if not intact:
                _warn(self.folder / name, reason)
                self._where = {key: where for key, where in self._where.items() if where[0] != name}
                return None
            while len(self._loaded) >= _SHARDS_IN_MEMORY:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[name] = arrays["vectors"]
        return self._loaded[name]


def _shard_name(keys: NDArray[Any], vectors: NDArray[Any]) -> str:
    return f"{hash_array(keys, vectors)[:32]}.safetensors"


def _warn(path: Path, reason: str) -> None:
    say(f"warning: {path}: cache shard ignored, its items are encoded again ({reason.rstrip('.')})")
