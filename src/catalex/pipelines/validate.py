"""Check every block of a recipe with the options of its component, before anything long begins."""

from __future__ import annotations

from catalex.errors import lookup
from catalex.features import make_encoder
from catalex.features.text import TextOptions
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import resolve_device
from catalex.recommenders import RECOMMENDERS, make_recommender
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.conflicts import space_after


def validate_blocks(recipe: Recipe, *, with_data: bool = True) -> None:
    """Parse all blocks; a typing error anywhere is told now and not after hours of training.

    Args:
        with_data: Also parse the data sources (which need polars) and look whether their files exist.

    Raises:
        CatalexError: The first thing that is wrong.
    """
    resolve_device(recipe.device)
    TextOptions.parse(recipe.text, "text")
    make_encoder(recipe.encoder, "encoder")
    space = space_after(make_tokenizer(recipe.tokenizer, "tokenizer").space, recipe.tokenize.conflicts)
    for stage in (recipe.pretrain, recipe.transfer):
        if stage is not None:
            make_recommender(recipe.component(recipe.recommender, stage.training), "recommender", space)
    for name in recipe.baselines:
        lookup(RECOMMENDERS, name, "recommender")
    for name in recipe.evaluate.baselines:
        make_recommender({"name": name, **recipe.baselines.get(name, {})}, f"baselines.{name}", space)
    if with_data:
        from catalex.data.prepare import PrepareOptions, input_hashes

        for name, block in recipe.domains.items():
            input_hashes(PrepareOptions.parse(block, f"domains.{name}"))
