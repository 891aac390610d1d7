"""run: the whole story of a recipe, from raw tables to a report and a bundle."""

from __future__ import annotations

from pathlib import Path

from catalex.pipelines.bundle import bundle_stage
from catalex.pipelines.embed import embed_stage
from catalex.pipelines.evaluate import evaluate_stage
from catalex.pipelines.prepare import prepare_stage
from catalex.pipelines.pretrain import pretrain_stage, transfer_stage
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.report import report_stage
from catalex.pipelines.tokenize import tokenize_stage
from catalex.pipelines.validate import validate_blocks


def run_recipe(recipe: Recipe, record: Path | None = None) -> Path:
    """Run every stage that is not done; returns the folder of the report."""
    validate_blocks(recipe)
    prepare_stage(recipe)
    embed_stage(recipe)
    tokenize_stage(recipe)
    pretrain_stage(recipe)
    transfer_stage(recipe)
    evaluate_stage(recipe, record)
    bundle_stage(recipe)
    return report_stage(recipe)
