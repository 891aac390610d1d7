"""prepare: raw tables -> canonical domain folders."""

from __future__ import annotations

from typing import Any

from catalex.artifacts import Stage
from catalex.data import columns as c
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import running, workspace


def prepare_stage(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Prepare every domain of the recipe; returns their manifests."""
    # imported here: machines that only train have no polars
    from catalex.data.prepare import PrepareOptions, input_hashes, prepare

    place = workspace(recipe)
    parsed = {name: PrepareOptions.parse(block, f"domains.{name}") for name, block in recipe.domains.items()}
    hashes = {
        name: input_hashes(options, name) for name, options in parsed.items()
    }  # missing files are told before any work
    manifests = {}
    for name, options in parsed.items():
        settings = options.model_dump(mode="json")
        stage = Stage(
            place.prepared(name), "prepare", {"name": name, "options": settings, "files": hashes[name]}
        )
        with running(stage, f"prepare {name}") as needed:
            if needed:
                prepare(name, options, stage.folder)
                files = [c.ITEMS_FILE, c.INTERACTIONS_FILE, c.MANIFEST_FILE]
                images = [c.IMAGES_FILE] if (stage.folder / c.IMAGES_FILE).is_file() else []
                stage.finish([*files, *images])
        manifests[name] = place.domain(name).manifest
    return manifests
