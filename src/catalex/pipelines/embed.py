"""embed: item text and images -> content vectors, cached by content hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from catalex.artifacts import Stage, hash_file, outputs_of, read_arrays, write_arrays
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.errors import user_error
from catalex.features import make_encoder
from catalex.features.embed import embed
from catalex.features.text import TextOptions
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import Workspace, resolve_device, running, workspace
from catalex.types import Floats

VECTORS = "vectors.safetensors"


def embed_stage(recipe: Recipe) -> None:
    """Content vectors of every domain of the recipe."""
    place = workspace(recipe)
    for name in recipe.domains:
        _embed(recipe, place, name, recipe.encoder, "encoder", place.embedded(name))
        has_images = (place.prepared(name) / c.IMAGES_FILE).is_file()
        if recipe.image_encoder is not None and has_images:
            _embed(recipe, place, name, recipe.image_encoder, "image_encoder", place.image_embedded(name))


def _embed(
    recipe: Recipe, place: Workspace, name: str, block: Mapping[str, Any], where: str, folder: Path
) -> None:
    """Vectors of one domain by the encoder of one block of the recipe, into one folder."""
    from catalex.data.images import ImageStore

    text = TextOptions.parse(recipe.text, "text")
    # one encoder a domain: encoders that depend on the corpus are fitted on it
    encoder = make_encoder(block, where, device=resolve_device(recipe.device))
    images = place.prepared(name) / c.IMAGES_FILE
    seen = {"images": hash_file(images)} if encoder.needs_images and images.is_file() else {}
    inputs = {
        **seen,  # images may be fetched after the domain was prepared
        "domain": outputs_of(place.prepared(name), "prepare"),
        "encoder": encoder.fingerprint,
        "text": text.model_dump(mode="json"),
        "stored_as": "float16",
    }
    stage = Stage(folder, "embed", inputs)
    with running(stage, f"embed {name} with {block['name']}") as needed:
        if needed:
            store = ImageStore(images) if seen else None
            vectors = embed(place.domain(name), encoder, text=text, cache=Path(recipe.cache), images=store)
            # encoders compute in bf16, which is coarser; half the space and the same numbers everywhere
            write_arrays(stage.folder / VECTORS, {"vectors": vectors.astype(np.float16)})
            stage.finish([VECTORS])


def load_vectors(place: Workspace, domain: str) -> Floats:
    """``(N, D)`` float32 content vectors of an embedded domain."""
    vectors: Floats = read_arrays(place.embedded(domain) / VECTORS)["vectors"].astype(np.float32)
    return vectors


def load_image_vectors(place: Workspace, domain: Domain) -> Floats:
    """``(N, D_v)`` float32 vectors of the items' images, zeros for an item without one.

    A domain without images, or a recipe without `image_encoder`, gives zeros ``(N, 1)``.
    """
    folder = place.image_embedded(domain.name)
    if not folder.is_dir():
        return np.zeros((len(domain), 1), np.float32)
    seen = (Stage(folder, "embed", {}).record or {}).get("inputs", {}).get("domain")
    if seen != outputs_of(place.prepared(domain.name), "prepare"):
        raise user_error(
            "the image vectors belong to an earlier preparation of this domain",
            place=domain.name,
            remedy="run 'catalex embed' again",
        )
    vectors: Floats = read_arrays(folder / VECTORS)["vectors"].astype(np.float32)
    return vectors
