"""Every recipe of the repository parses, and its blocks are valid for their components."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalex.data.prepare import PrepareOptions
from catalex.data.sources import make_source
from catalex.pipelines.recipe import read_recipe
from catalex.pipelines.validate import validate_blocks

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("recipes/*.y*ml"))


def test_there_are_recipes() -> None:
    assert "demo.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_its_blocks_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATALEX_DATA", "/dummy")
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    validate_blocks(recipe, with_data=False)
    for name, block in recipe.domains.items():
        options = PrepareOptions.parse(block, f"domains.{name}")
        make_source(options.source, options.options, f"domains.{name}.options")
    assert path.read_text(encoding="utf-8").startswith("#"), "a recipe begins with what it is for"


def test_the_demo_needs_nothing_that_is_not_packaged() -> None:
    validate_blocks(read_recipe(ROOT / "recipes/demo.yaml"))
