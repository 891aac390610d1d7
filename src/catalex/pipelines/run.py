"""run: the whole story of a recipe, from raw tables to a report and a bundle."""

from __future__ import annotations

from pathlib import Path

from catalex.artifacts import read_json
from catalex.pipelines.bundle import bundle_stage
from catalex.pipelines.content import needs_of
from catalex.pipelines.embed import embed_stage
from catalex.pipelines.evaluate import SUMMARY, evaluate_stage, print_summary
from catalex.pipelines.prepare import prepare_stage
from catalex.pipelines.pretrain import pretrain_stage, transfer_stage
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.report import report_stage
from catalex.pipelines.tokenize import tokenize_stage
from catalex.pipelines.validate import validate_blocks

SHOWN = 3
"""Examples of recommendations printed at the end of a run."""


def run_recipe(recipe: Recipe, record: Path | None = None) -> Path:
    """Run every stage that is not done and that something reads; returns the folder of the report."""
    validate_blocks(recipe)
    prepare_stage(recipe)
    needs = needs_of(recipe)
    if needs & {"identifiers", "vectors", "image_vectors"}:
        embed_stage(recipe)
    if "identifiers" in needs:
        tokenize_stage(recipe)
    pretrain_stage(recipe)
    transfer_stage(recipe)
    evaluate_stage(recipe, record)
    bundle_stage(recipe)
    return report_stage(recipe)


def print_outcome(recipe: Recipe, folder: Path) -> None:
    """Print what a run found: the table of systems, some recommendations by title, where everything is."""
    found = read_json(folder / "report.json")
    judged = recipe.folder / "evaluate" / SUMMARY
    if judged.is_file():
        print_summary(read_json(judged))
    for example in found.get("examples", [])[:SHOWN]:
        print(
            f"\nA customer of {example['domain']} had bought, oldest first: {'; '.join(example['history'])}"
        )
        place = f"number {example['rank']}" if example["rank"] else "not among them"
        print(f"{example['system']} recommends:")
        for number, title in enumerate(example["recommended"], start=1):
            print(f"  {number:2d}. {title}")
        print(f"Bought next: {example['target']} ({place})")
    print(f"\nreport: {folder}")
    for name in recipe.evaluate_domains:
        bundle = recipe.folder / "bundle" / name
        if bundle.is_dir():
            print(f"try it: catalex recommend {bundle} --history '#1,#2'")
            print(f"serve it: catalex serve {bundle}")
