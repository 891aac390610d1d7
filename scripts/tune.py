"""Choose a baseline's settings: fit every point of a grid and print the validation NDCG@10 of each.

    python scripts/tune.py recipes/beauty.yaml sasrec dropout=0.2,0.3,0.5 hidden=64,128

The test cases are never touched. Put the best line under ``baselines`` of the recipe. Finished points are
skipped when the command is run again.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import yaml

from catalex.artifacts import read_json
from catalex.errors import CatalexError, user_error
from catalex.pipelines.content import baseline_block
from catalex.pipelines.pretrain import FACTS, fit_block, training_stage
from catalex.pipelines.recipe import read_recipe
from catalex.pipelines.workspace import running, workspace


def main(recipe_path: str, name: str, *axes: str) -> None:
    """Fit the grid on every evaluated domain of the recipe, first seed."""
    recipe = read_recipe(Path(recipe_path))
    place, seed = workspace(recipe), recipe.seeds[0]
    grid = {}
    for axis in axes:
        key, separator, values = axis.partition("=")
        if not separator:
            raise user_error("a grid axis has the form key=value,value", place="tune", value=axis)
        grid[key] = [yaml.safe_load(value) for value in values.split(",")]
    for domain in recipe.evaluate_domains:
        found = []
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            block = {**baseline_block(recipe, name), **point}
            label = "_".join(f"{key}-{value}" for key, value in point.items())
            folder = place.root / "tune" / domain / name / label
            stage = training_stage(place, "tune", folder, [domain], block, seed)
            with running(stage, f"tune {name} on {domain}: {label}") as needed:
                if needed:
                    fit_block(stage, place, block, name, [domain], seed, recipe.device)
            found.append((read_json(folder / FACTS)["valid_ndcg@10"], point))
        for metric, point in sorted(found, key=lambda pair: -pair[0]):
            print(f"{domain} {name} valid_ndcg@10 {metric:.5f} {point}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except CatalexError as error:
        sys.exit(f"tune: {error}")
