"""Every recipe of the repository parses, and its blocks are valid for their components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catalex.data.prepare import PrepareOptions
from catalex.data.sources import make_source
from catalex.pipelines.recipe import dump_recipe, read_recipe
from catalex.pipelines.validate import validate_blocks

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("CATALEX_DATA", "CATALEX_TAEF2")
"""What recipes name by environment variables; checking a recipe needs none of it to be there."""
RECIPES = sorted(ROOT.glob("recipes/*.y*ml"))


TARGETS = ("office", "toys")
PLAIN_BOOKS = {"residual": "quantized", "share_leaf": False, "projected": False, "leaf": 256}
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    # without W only the codes themselves can follow a new domain
    "utgrec-no-tree": {
        "tokenizer": {**PLAIN_BOOKS, "fine_tune_start": "kept", "fine_tune_warmup": 0.0},
        "tokenize": {"adapt": dict.fromkeys(TARGETS, "full")},
    },
    "utgrec-no-alignment": {"tokenizer": {"alignment_weight": 0.0}},
    "utgrec-no-cooccurrence": {"tokenizer": {"cooccurrence_weight": 0.0}},
    "utgrec-frozen": {"tokenize": {"adapt": {}}},
    "utgrec-full": {"tokenize": {"adapt": dict.fromkeys(TARGETS, "full")}},
}
"""What each ablation changes of the recipe utgrec, and nothing else."""


def test_there_are_recipes() -> None:
    assert "demo.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_its_blocks_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "/dummy")
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    validate_blocks(recipe, with_data=False)
    for name, block in recipe.domains.items():
        options = PrepareOptions.parse(block, f"domains.{name}")
        make_source(options.source, options.options, f"domains.{name}.options")
    assert path.read_text(encoding="utf-8").startswith("#"), "a recipe begins with what it is for"


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_an_ablation_changes_what_it_is_named_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "/dummy")
    full, ablation = (dump_recipe(read_recipe(ROOT / f"recipes/{one}.yaml")) for one in ("utgrec", name))
    for block, changes in ABLATIONS[name].items():
        full[block] = {**full[block], **changes}
    assert ablation == {**full, "name": name}


def test_the_demo_needs_nothing_that_is_not_packaged() -> None:
    validate_blocks(read_recipe(ROOT / "recipes/demo.yaml"))
