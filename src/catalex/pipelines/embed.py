"""embed: item text and images -> content vectors, cached by content hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from catalex.artifacts import Stage, hash_file, outputs_of, read_arrays, write_arrays
from catalex.data import columns as c
from catalex.features import make_encoder
from catalex.features.embed import embed
from catalex.features.text import TextOptions
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import Workspace, resolve_device, running, workspace
from catalex.types import Floats

VECTORS = "vectors.safetensors"


def embed_stage(recipe: Recipe) -> None:
    """Content vectors of every domain of the recipe."""
    from catalex.data.images import ImageStore

    place = workspace(recipe)
    text = TextOptions.parse(recipe.text, "text")
    for name in recipe.domains:
        # one encoder a domain: encoders that depend on the corpus are fitted on it
        encoder = make_encoder(recipe.encoder, "encoder", device=resolve_device(recipe.device))
        images = place.prepared(name) / c.IMAGES_FILE
        seen = {"images": hash_file(images)} if encoder.needs_images and images.is_file() else {}
        inputs = {
            **seen,  # images may be fetched after the domain was prepared
            "domain": outputs_of(place.prepared(name), "prepare"),
            "encoder": encoder.fingerprint,
            "text": text.model_dump(mode="json"),
            "stored_as": "float16",
        }
        stage = Stage(place.embedded(name), "embed", inputs)
        with running(stage, f"embed {name} with {recipe.encoder['name']}") as needed:
            if needed:
                store = ImageStore(images) if seen else None
                vectors = embed(
                    place.domain(name), encoder, text=text, cache=Path(recipe.cache), images=store
                )
                # encoders compute in bf16, which is coarser; half the space and the same numbers everywhere
                write_arrays(stage.folder / VECTORS, {"vectors": vectors.astype(np.float16)})
                stage.finish([VECTORS])


def load_vectors(place: Workspace, domain: str) -> Floats:
    """``(N, D)`` float32 content vectors of an embedded domain."""
    vectors: Floats = read_arrays(place.embedded(domain) / VECTORS)["vectors"].astype(np.float32)
    return vectors
